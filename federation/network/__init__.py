"""The machine's networks, and mDNS: possible addresses of colonies."""
