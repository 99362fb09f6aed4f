"""Membership: how colonies meet, trust, introduce, change keys and part."""
