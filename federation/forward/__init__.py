"""Forwards as values: state machine, path, chain of outcomes, updates."""
