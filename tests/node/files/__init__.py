"""Tests of files and their bytes."""
