"""Tests of history, retention and backup."""
