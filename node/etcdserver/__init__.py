"""The etcd beneath: our own child process, its upkeep, or a cluster elsewhere."""
