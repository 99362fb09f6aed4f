"""Tests of meeting, trust and keys."""
