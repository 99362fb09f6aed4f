"""Tests of the origin's end."""
