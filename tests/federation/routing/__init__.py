"""Tests of routes and capabilities."""
