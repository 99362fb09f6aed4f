"""Tests of calls: rights, replay, large messages."""
