"""Tests of the etcd client, watch and supervisor against a real etcd.

Nothing here replaces etcd by something else.
"""
