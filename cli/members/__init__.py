"""Commands about colonies, users, executors, functions and locations."""
