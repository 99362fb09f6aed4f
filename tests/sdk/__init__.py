"""Tests of others' clients, and of the documents."""
