"""What starts by the clock, on the one daemon that leads."""
