"""Workers killed at random, and what came of it."""
