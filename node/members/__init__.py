"""Colonies, users, executors, functions, locations, and changes of their keys."""
