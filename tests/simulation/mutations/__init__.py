"""Checks of federation, to be broken; `tests.simulation.test_mutations` shows who notices."""
