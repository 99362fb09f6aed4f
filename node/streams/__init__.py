"""What is told of a process while it lives: log lines, channels, and changes to subscribers."""
