"""Tests of real colonies, attackers and kills."""
