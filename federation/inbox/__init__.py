"""The executor's end of a forward: accept once, keep the outcome, send updates."""
