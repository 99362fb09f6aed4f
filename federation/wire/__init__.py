"""The signed wire without I/O: CBOR, envelope, messages, card."""
