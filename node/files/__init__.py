"""Versions of files, and the bytes of those that are kept here."""
