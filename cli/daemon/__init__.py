"""Commands for a daemon of one's own: make, run, save, look into its home."""
