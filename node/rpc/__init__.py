"""The RPC edge: HTTP serving and the dispatch of signed messages."""
