"""How tasks live together: wake-ups, fair turns, work beside the event loop, contained failures."""
