"""The tree of tasks, and what the RPC port serves: calls, WebSocket, bytes, metrics."""
