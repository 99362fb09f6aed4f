"""Errors that the node tells a caller: one class for each meaning.

Code below the edges catches classes; only the edges (`node.rpc`, `node.daemon`, the federation's
server) read the HTTP status that a class suggests. Errors of the store are in `etcd.errors`.
"""

from __future__ import annotations


class RpcError(Exception):
    """A refused request: `message` says what is wrong, `status` is a hint for HTTP."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Invalid(RpcError):
    """The request can't be understood, or makes no sense in the present state."""

    status = 400


class Denied(RpcError):
    """The caller has no right to this."""

    status = 403


class NotFound(RpcError):
    """The thing that the request names does not exist here."""

    status = 404


class TimedOut(RpcError):
    """No result came within the time of the request."""

    status = 408


class Conflict(RpcError):
    """The present state forbids the request."""

    status = 409


class TooLarge(RpcError):
    """The request has more bytes than its kind may have."""

    status = 413


class TooMany(RpcError):
    """A quota or another limit is reached; nothing was changed."""

    status = 429


class Unavailable(RpcError):
    """This daemon can't do it now, through no fault of the caller's: try again later."""

    status = 503


_KINDS = (Invalid, Denied, NotFound, TimedOut, Conflict, TooLarge, TooMany, Unavailable)


def of_status(status: int, message: str) -> RpcError:
    """Return the error of a reply with this HTTP status, which the error's text names, too."""
    error = next((kind for kind in _KINDS if kind.status == status), RpcError)(message)
    error.status = status
    error.args = (f"{message} (status {status})",)
    return error


class ColonyError(Exception):
    """An error that a person has to settle: `message` says what is wrong, `next_step` what to
    do.
    """

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(f"{message}; {next_step}" if next_step else message)
        self.message = message
        self.next_step = next_step


class NotPermitted(ColonyError):
    """The colony's owner has refused this, or has yet to allow it."""


class WrongSetting(ColonyError):
    """A setting, such as an address, that makes no sense."""


class NotThere(ColonyError):
    """A file, a key or a home that is needed does not exist."""
