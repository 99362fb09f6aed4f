"""The registry of peers: record, trust, policy, clock, our own card; store keys."""
