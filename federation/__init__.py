"""Federation: everything between colonies, from envelopes and cards to trust and forwards.

It imports `node`; `node` imports nothing of it.
"""
