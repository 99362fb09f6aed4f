"""Streams of a process while it lives: log lines, channels, and changes for subscribers."""
