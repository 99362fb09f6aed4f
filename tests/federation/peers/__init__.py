"""Tests of the registry, policies and clocks."""
