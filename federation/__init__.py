"""Everything between colonies: envelopes, cards, discovery, trust and forwards.

It imports `node`; nothing in `node` knows that it exists.
"""
