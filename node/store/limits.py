"""Limits in bytes: the table "Limits" of docs/compatibility.md.

A test holds that table and this module together. The limit of a request is `rpc.max_body`; limits
on numbers of things are in `processes.quotas`.
"""

from __future__ import annotations

from node.etcd.parts import MOST

__all__ = ["ANSWER", "BLUEPRINT", "CHANNEL", "GENERATOR", "INPUT", "MESSAGE", "VALUE"]

_MIB = 2**20
# The value of one key, such as a process with arguments, input, output and attributes.
VALUE = MOST
# The outputs of all parents of a node of a workflow.
INPUT = 32 * _MIB
# One message of a channel, as upstream; all messages of a channel, so that one answer has them.
MESSAGE = 10 * _MIB
CHANNEL = 32 * _MIB
# A blueprint or a definition: each of up to 1,000 generations is kept whole.
BLUEPRINT = 4 * _MIB
# All arguments of one workflow that a generator starts.
GENERATOR = 12 * _MIB
# JSON in one answer.
ANSWER = 64 * _MIB
