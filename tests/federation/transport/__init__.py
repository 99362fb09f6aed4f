"""Tests of TLS and mailboxes."""
