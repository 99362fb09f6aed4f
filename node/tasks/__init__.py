"""Tools of tasks that live together: wake-ups, fair turns, work beside the event loop, contained
failures.
"""
