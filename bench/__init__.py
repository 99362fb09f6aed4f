"""Measurements of a running daemon: `run` is the command, and has a section for each of the others:
`load` makes the load of one server, `raw` is the limit of etcd, `sizes` what calls cost by size,
`forwards` what a forward costs two daemons, `resting` starts, memory and what a daemon does when
nobody calls, `workers` what a call of a Python function costs. `daemon` starts a colonyd, `options`
reads command lines. `trips` counts the rooms that a call goes through.

Nothing here is installed; run it from the repository with `scripts/bench`.
"""
