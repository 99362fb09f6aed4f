"""The handlers of the table of calls, one module for each kind of object.

Roles are checked before a handler runs, unless its row says that the handler decides.
"""
