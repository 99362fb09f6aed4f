"""The etcd client for trio: calls, transactions as values, watches.

The keys and their meaning are in `node.store`.
"""
