"""Where a process goes that names no colony."""
