"""Tests of what peers and strangers may cost."""
