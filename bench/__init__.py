"""Measurements of a running daemon: `run` starts one and prints the table, `load` makes the load.
`trips` counts the rooms that a call goes through.

Nothing here is installed; run it from the repository with `scripts/bench`.
"""
