"""The composition root of a node: all its parts put together, fed by the watch."""
