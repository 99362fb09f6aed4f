"""Calls about work: processes, workflows, what starts them, and what is told of them."""
