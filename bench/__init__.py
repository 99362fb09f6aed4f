"""Measurements of a running daemon: `run` starts one and prints the table, `load` makes the load.

Nothing here is installed; run it from the repository with `scripts/bench`.
"""
