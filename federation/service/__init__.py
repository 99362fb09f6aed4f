"""The composition root: listener, sessions of peers, hooks of the node, RPC rows."""
