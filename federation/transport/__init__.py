"""Connections to one peer: pinned TLS, or a mailbox in between."""
