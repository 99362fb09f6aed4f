"""Wanted states and their reconcilers."""
