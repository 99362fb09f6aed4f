"""Tests of the envelope, cards, messages and vectors."""
