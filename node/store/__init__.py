"""The key layout, and each change of state as one transaction.

Values in, transactions out: only `store.update` talks to etcd.
"""
