"""Versions of files, and the bytes of files that are kept here."""
