"""Tests of crons and generators."""
