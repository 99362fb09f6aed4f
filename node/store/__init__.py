"""What is kept where: the key layout, and each change of state as one transaction.

Values in, transactions out: nothing here talks to etcd.
"""
