"""The origin's end: durable outbox, sender, outcomes, updates."""
