"""HTTP/1.1 on trio streams, knowing nothing of colonies."""
