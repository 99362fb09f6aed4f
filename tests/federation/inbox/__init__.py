"""Tests of the executor's end, relays and updates."""
