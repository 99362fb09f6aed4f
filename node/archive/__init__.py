"""What leaves the store for good, and copies of all of it."""
