"""Tests of process graphs."""
