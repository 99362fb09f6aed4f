"""Tests of the daemon as a process, and of several beside one store."""
