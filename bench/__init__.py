"""Measurements of a running daemon: `run` starts one and prints the table, `load` makes the load.
`trips` counts the rooms that a call goes through, `resting` measures starts, memory and what a daemon
does when nobody calls.

Nothing here is installed; run it from the repository with `scripts/bench`.
"""
