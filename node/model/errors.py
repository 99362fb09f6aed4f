"""The error that a caller of the node sees: a status and a message that says what to do.

Errors of the store have their own classes in `etcd.errors`.
"""

from __future__ import annotations


class RpcError(Exception):
    """Refusal of a request. `status` is the HTTP status of the reply (400, 403, 404, ...)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def bad(message: str) -> RpcError:
    """The request can't be understood or makes no sense (400)."""
    return RpcError(400, message)


def denied(message: str) -> RpcError:
    """The caller has no right to this (403)."""
    return RpcError(403, message)


def missing(message: str) -> RpcError:
    """What the request names is not here (404)."""
    return RpcError(404, message)


def conflict(message: str) -> RpcError:
    """The state of things forbids this now (409)."""
    return RpcError(409, message)
