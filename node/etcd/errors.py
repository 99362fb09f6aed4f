"""Errors of etcd: exceptions with a stable code, made from gRPC's status.

Callers decide about retries, and about the answer to a client of the daemon.
"""

from __future__ import annotations

from typing import ClassVar


class EtcdError(Exception):
    """etcd refused or failed a request; `retryable`: the same request may succeed later.

    `refused`: etcd itself said so, and did nothing of it.
    """

    code: ClassVar[str] = "etcd"
    retryable: ClassVar[bool] = False
    refused: bool = False


class EtcdUnavailable(EtcdError):
    """No answer in time. A write may have happened or not: read back, or repeat if idempotent."""

    code = "unavailable"
    retryable = True


class EtcdUnauthenticated(EtcdUnavailable):
    """The token of the connection is no longer known: the next connection gets another."""

    code = "unauthenticated"


class EtcdDenied(EtcdError):
    """etcd refuses this user, or this action of the user."""

    code = "denied"


class EtcdTooLarge(EtcdError):
    """The request, or the answer, is over the size limit (1.5 MiB for a request by default)."""

    code = "too_large"


class EtcdTooManyOps(EtcdError):
    """More operations or comparisons in a branch of a transaction than etcd takes (128)."""

    code = "too_many_ops"


class EtcdNoSpace(EtcdError):
    """The space quota is reached: only reads, deletes and maintenance until space is freed."""

    code = "no_space"


class StoreFull(EtcdNoSpace):
    """The daemon itself refused a write, before sending it: the reserve is for more urgent kinds of
    writes.
    """

    code = "store_full"


class LeaseLost(EtcdError):
    """The lease expired or was revoked; keys attached to it are gone."""

    code = "lease_lost"


class Compacted(EtcdError):
    """The requested revision is no longer kept; list again at the present one."""

    code = "compacted"


class StoreRefused(Exception):
    """The store cannot be opened; the message says why and what to do."""


# etcd tells its errors apart by text only: several of them share a gRPC code.
_BY_TEXT: tuple[tuple[str, type[EtcdError]], ...] = (
    ("too many operations", EtcdTooManyOps),
    ("request is too large", EtcdTooLarge),
    ("message larger than max", EtcdTooLarge),
    ("database space exceeded", EtcdNoSpace),
    ("requested lease not found", LeaseLost),
    ("revision has been compacted", Compacted),
    ("invalid auth token", EtcdUnauthenticated),
    ("revision of auth store is old", EtcdUnauthenticated),
    ("authentication failed", EtcdDenied),
    ("user name is empty", EtcdDenied),
    ("permission denied", EtcdDenied),
    ("too many requests", EtcdUnavailable),
    ("request timed out", EtcdUnavailable),
    ("leader changed", EtcdUnavailable),
    ("no leader", EtcdUnavailable),
    ("server stopped", EtcdUnavailable),
    ("stopping", EtcdUnavailable),
)
_UNAVAILABLE_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED"})
# What etcd, or gRPC before it, gives for a request that it does not take.
_REFUSAL_CODES = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "FAILED_PRECONDITION",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "UNIMPLEMENTED",
    }
)


def error_from(code_name: str, details: str) -> EtcdError:
    """Return the exception for a gRPC status: `code_name` as in `grpc.StatusCode`, `details` as
    sent.
    """
    found = EtcdUnavailable if code_name in _UNAVAILABLE_CODES else EtcdError
    kind = next((kind for part, kind in _BY_TEXT if part in details), found)
    error = kind(f"{details} ({code_name})")
    error.refused = code_name in _REFUSAL_CODES and not isinstance(error, EtcdUnavailable)
    return error
