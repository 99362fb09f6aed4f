"""What tests share: daemons, clients, networks, clocks."""
