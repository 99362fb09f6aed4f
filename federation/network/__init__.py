"""The machine's networks, and mDNS: where colonies may be."""
