"""The origin's end of a forward: durable outbox, sender, outcomes, updates."""
