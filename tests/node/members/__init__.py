"""Tests of members and changes of ids."""
