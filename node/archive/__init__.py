"""The archive: history of what left the store, and backups of all of it."""
