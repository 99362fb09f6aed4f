"""One colony, complete without any network of peers."""
