"""Commands about other colonies."""
