"""Tests of one node, by package."""
