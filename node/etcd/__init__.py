"""The store's engine: an etcd client for trio, transactions as values, watches, the embedded etcd.

What is kept under which key, and what it means, is the business of `node.store`.
"""
