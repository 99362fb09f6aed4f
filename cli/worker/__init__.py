"""The shell worker."""
