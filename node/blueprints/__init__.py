"""Blueprints: wanted states and their reconcilers."""
