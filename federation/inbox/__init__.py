"""The executor's end: accept once, owe the outcome, tell what is new."""
