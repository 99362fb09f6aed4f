"""What a worker has on its machine: its name, its key, and that no other uses them at once."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from colonyd.errors import ColonyError, NotThere
from colonyd.keys import IdentityError, PrivateKey, read_key, write_key
from colonyd.names import in_file
from colonyd.worker.lockfile import hold


def default_name(kind: str) -> str:
    """Return a name for the executor made from the host's name and its type."""
    host = socket.gethostname().split(".")[0]
    return re.sub(r"[^A-Za-z0-9_.\-]", "-", f"{host}-{kind}").lstrip("-.")[:63] or kind


def executor_key(path: Path, *, make: bool = True) -> PrivateKey:
    """Read the executor's key, or make it. Raises ColonyError."""
    step = "choose another name, or another directory for its state"
    try:
        try:
            return read_key(path)
        except FileNotFoundError:
            if not make:
                raise
        key = PrivateKey.generate()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_key(path, key)
        return key
    except FileNotFoundError as error:
        raise NotThere(f"{path}: {error.strerror}", next_step="name a key that exists") from None
    except (OSError, IdentityError) as error:
        raise ColonyError(f"{path}: {error}", next_step=step) from None


def results_of(state: Path, name: str) -> Path:
    """Return the directory for the results of an executor, which it makes."""
    directory = state / "results" / in_file(name)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def alone(state: Path, colony: str, name: str, kind: str) -> Iterator[None]:
    """Hold the lock of an executor: two with one key would each take the other's processes for
    leftovers. Raises ColonyError.
    """
    with contextlib.ExitStack() as stack:
        path = state / f"{in_file(f'worker-{name}')}.lock"
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(hold(path, colony, name, kind))
        except BlockingIOError:
            raise ColonyError(
                f"a worker called {name} runs already in this home",
                next_step="give this one another name",
            ) from None
        except OSError as error:
            raise ColonyError(
                f"{path}: {error.strerror}", next_step="choose another directory for its state"
            ) from None
        yield
