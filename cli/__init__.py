"""The `colony` command: talks to a daemon through RPC only. Nothing here touches the store."""
