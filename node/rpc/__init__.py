"""The contract of calls: rows, requests, dispatch of signed messages, and replay."""
