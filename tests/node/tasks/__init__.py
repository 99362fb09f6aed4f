"""Tests of settings, keys, log and systemd."""
