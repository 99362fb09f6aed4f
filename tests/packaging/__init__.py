"""Tests of what is installed: packages on real Debian systems, and hosts without Internet."""
