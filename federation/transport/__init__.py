"""Pinned TLS to one peer, and the ways around."""
