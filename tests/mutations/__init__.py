"""Checks taken out one at a time: a named test must notice each."""
