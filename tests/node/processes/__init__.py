"""Tests of the queue, assignment, quotas, channels and subscriptions."""
