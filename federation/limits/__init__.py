"""Limits on what peers and strangers cost here."""
