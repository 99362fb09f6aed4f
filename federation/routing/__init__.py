"""Routing of processes that name no colony."""
