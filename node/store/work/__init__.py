"""The life of a process in the store: process, graph, request, log lines, channels."""
