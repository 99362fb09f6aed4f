"""Tests of what is between colonies, by package."""
