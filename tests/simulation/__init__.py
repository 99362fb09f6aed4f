"""Many colonies in one process on virtual time, over a faulty network and stores that crash.

The code of `federation` and `node` runs unchanged; only store, link and clock are simulated here.
"""
