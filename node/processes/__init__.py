"""A process from submission to its end: queue, assignment, deadlines, quotas."""
