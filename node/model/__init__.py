"""Values without I/O: what is stored, what crosses the wire, and errors."""
