"""Checks of federation that can be broken here; `tests.test_mutations` shows who notices."""
