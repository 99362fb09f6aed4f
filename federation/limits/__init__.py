"""What peers and strangers may cost here."""
