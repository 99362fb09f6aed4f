"""The composition root: listener, sessions of peers, hooks into the node, RPC rows."""
