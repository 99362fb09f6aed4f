"""Functions in Python as functions of an executor: arguments are checked, results encoded."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec

from colonyd.worker.context import BlockingContext, Context
from colonyd.worker.handler import Ending, Execution, line_of_error

_MOST_TRACE = 12_000  # bytes of a traceback in the log
_AT = re.compile(r" - at `(key in )?\$(?P<path>.*)`$")


class Failed(Exception):
    """Raised by a function to fail its process with these errors, and no traceback in its log."""

    def __init__(self, *errors: str) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = list(errors) or ["the function failed"]


class WrongArguments(Exception):
    """Arguments that a function can't take; the message begins with the name of one."""


@dataclass(frozen=True)
class Retry:
    """The exceptions after which a function is tried again, and how often."""

    on: tuple[type[Exception], ...] = ()
    attempts: int = 1
    pause: float = 1.0  # seconds before the second attempt; doubles

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.pause < float("inf"):
            raise ValueError("attempts: at least 1; pause: seconds, not negative")


@dataclass(frozen=True)
class Signature:
    """The parameters of a function, with the types of their values."""

    name: str
    positional: Sequence[inspect.Parameter]
    named: Mapping[str, inspect.Parameter]
    rest: inspect.Parameter | None  # *args
    others: inspect.Parameter | None  # **kwargs
    types: Mapping[str, Any]
    context: str  # the name of the parameter that gets the context, "" without one
    place: int  # how many positional parameters stand before it

    @classmethod
    def of(cls, function: Callable[..., Any], name: str) -> Signature:
        """Read the signature of a function. Raises TypeError for one that no worker can call."""
        code = _code_of(function)
        if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
            raise TypeError(f"{name}: a generator has no result; return a list")
        try:
            hints = typing.get_type_hints(code, include_extras=True)
        except NameError as error:
            raise TypeError(
                f"{name}: {error}: the types in its annotations must be names of its module"
            ) from None
        wanted = Context if _is_async(function) else BlockingContext
        context, place, named = "", 0, dict[str, inspect.Parameter]()
        positional = list[inspect.Parameter]()
        rest = others = None
        for parameter in inspect.signature(function).parameters.values():
            hint = hints.get(parameter.name, Any)
            if hint in (Context, BlockingContext):
                if hint is not wanted or context:
                    raise TypeError(
                        f"{name}: {parameter.name}: one parameter may be a {wanted.__name__} in"
                        f" {'an async' if wanted is Context else 'a sync'} function"
                    )
                if parameter.kind is parameter.POSITIONAL_ONLY:
                    raise TypeError(f"{name}: {parameter.name} must not be positional only")
                context, place = parameter.name, len(positional)
                if parameter.kind is parameter.KEYWORD_ONLY:
                    place = sys.maxsize
            elif parameter.kind is parameter.VAR_POSITIONAL:
                rest = parameter
            elif parameter.kind is parameter.VAR_KEYWORD:
                others = parameter
            else:
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    positional.append(parameter)
                if parameter.kind is not parameter.POSITIONAL_ONLY:
                    named[parameter.name] = parameter
            _check(hint, f"{name}: {parameter.name}")
        return cls(name, positional, named, rest, others, hints, context, place)

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments as values of the declared types. Raises WrongArguments."""
        if len(args) > len(self.positional) and self.rest is None:
            raise WrongArguments(
                f"args: {self.name} takes at most {len(self.positional)}, and got {len(args)}"
            )
        bound: list[Any] = []
        by_name: dict[str, Any] = {}
        for number, value in enumerate(args):
            more = number >= len(self.positional)
            parameter = self.rest if more else self.positional[number]
            assert parameter is not None
            field = f"{parameter.name}[{number - len(self.positional)}]" if more else parameter.name
            if not more and parameter.name == self.context:
                raise WrongArguments(f"args: {self.name} has no argument {number + 1}")
            bound.append(self._converted(field, parameter.name, value))
        given = {parameter.name for parameter in self.positional[: len(args)]}
        for name, value in kwargs.items():
            if name in given:
                raise WrongArguments(f"{name}: given twice, in args and in kwargs")
            if name not in self.named and self.others is None:
                known = ", ".join(self.named) or "none"
                raise WrongArguments(f"{name}: {self.name} has no such argument; it has: {known}")
            declared = self.named.get(name, self.others)
            assert declared is not None
            by_name[name] = self._converted(name, declared.name, value)
        for parameter in [*self.positional, *self.named.values()]:
            missing = parameter.name not in given and parameter.name not in by_name
            if missing and parameter.default is parameter.empty:
                raise WrongArguments(f"{parameter.name}: {self.name} needs this argument")
        return bound, by_name

    def given(
        self, args: list[Any], kwargs: dict[str, Any], context: Context | BlockingContext
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return bound arguments with the context among them, if the function takes it."""
        if not self.context:
            return args, kwargs
        if len(args) > self.place:
            return [*args[: self.place], context, *args[self.place :]], kwargs
        return args, {**kwargs, self.context: context}

    def _converted(self, field: str, name: str, value: Any) -> Any:
        try:
            return msgspec.convert(value, self.types.get(name, Any), str_keys=True)
        except msgspec.ValidationError as error:
            text, path = str(error), ""
            if found := _AT.search(text):
                text, path = text[: found.start()], found["path"]
            raise WrongArguments(f"{field}{path}: {text[:1].lower()}{text[1:]}") from None

    def described(self) -> list[dict[str, str]]:
        """Return the parameters as a colony lists them: name and type."""
        every = {each.name: each for each in [*self.positional, *self.named.values()]}
        return [{"name": name, "type": _type_name(self.types.get(name, Any))} for name in every]


def _code_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what has the annotations: the function of a partial, the method of an object."""
    while isinstance(function, partial):
        function = function.func
    plain = inspect.isroutine(function) or inspect.isclass(function)
    called: Callable[..., Any] = function if plain else type(function).__call__
    return called


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(_code_of(function))


def _check(hint: Any, place: str) -> None:
    """Raise TypeError for a type that no value can be converted to."""
    try:
        msgspec.convert(None, hint)
    except msgspec.ValidationError:
        pass
    except (TypeError, NameError) as error:
        raise TypeError(f"{place}: {error}") from None


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def output_of(value: Any, name: str) -> list[Any]:
    """Return the result of a function as the output of a process.

    None is no output, a tuple is one output each, anything else is one. Raises Failed for what has
    no form in JSON.
    """
    values = list(value) if type(value) is tuple else [] if value is None else [value]
    try:
        encoded = msgspec.to_builtins(values, str_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise Failed(f"the result of {name}: {error}") from None
    assert isinstance(encoded, list)
    return encoded


@dataclass(frozen=True)
class FunctionHandler:
    """Calls a function in Python for each process: an async one in the loop, others in a thread."""

    function: Callable[..., Any]
    signature: Signature
    retry: Retry
    threads: anyio.CapacityLimiter
    reruns: bool = False
    resumes = False

    async def __call__(self, execution: Execution) -> Ending:
        """Call the function, again after the exceptions that its declaration names."""
        name = self.signature.name
        try:
            args, kwargs = self.signature.bind(execution.args, execution.kwargs)
        except WrongArguments as error:
            return Ending([], [str(error)])
        seconds = self.retry.pause
        for attempt in range(1, self.retry.attempts + 1):
            try:
                return Ending(
                    output_of(await self._called(execution, attempt, args, kwargs), name), []
                )
            except BaseException as error:
                # A nursery of the function gathers what was raised in it, one error even.
                raised = [*_leaves(error)]
                # Extensions in Rust raise panics of theirs, which are no Exceptions.
                ends = (anyio.get_cancelled_exc_class(), GeneratorExit, KeyboardInterrupt)
                if any(isinstance(each, ends) for each in raised):
                    raise
                told = [text for each in raised if isinstance(each, Failed) for text in each.errors]
                if told:
                    return Ending([], told)
                again = all(isinstance(each, self.retry.on) for each in raised)
                if not again or attempt == self.retry.attempts:
                    return _failed(execution, error, raised)
                note = f"attempt {attempt}: {line_of_error(raised[0])}; again in {seconds:g} s\n"
                execution.stderr(note.encode(errors="replace"))
            await anyio.sleep(seconds)
            seconds *= 2
        raise AssertionError("attempts is at least 1")

    async def _called(
        self, execution: Execution, attempt: int, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        context = Context(execution, attempt)
        if _is_async(self.function):
            args, kwargs = self.signature.given(args, kwargs, context)
            result = self.function(*args, **kwargs)
        else:
            result = await self._in_thread(context, args, kwargs)
        # A decorator may have made a sync function of an async one.
        if not inspect.isawaitable(result):
            return result
        with _own_cancellations():
            return await result

    async def _in_thread(self, context: Context, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a sync function in a thread.

        No thread can be ended from outside. A process that is withdrawn keeps its place until the
        function returns, which its context tells it to do; a worker that leaves waits no longer.
        """
        blocking = BlockingContext(context)
        args, kwargs = self.signature.given(args, kwargs, blocking)
        released = context.execution.released

        def call() -> Any:
            try:
                return self.function(*args, **kwargs)
            finally:
                # Either this thread sees that it was cancelled, or the task that it has ended.
                blocking.ended = True
                if blocking.cancelled:
                    anyio.from_thread.run_sync(released.set)

        try:
            return await anyio.to_thread.run_sync(
                call, abandon_on_cancel=True, limiter=self.threads
            )
        except anyio.get_cancelled_exc_class():
            blocking.cancelled = True
            if context.execution.withdrawn and not blocking.ended:
                with anyio.CancelScope(shield=True):
                    await released.wait()
            raise


@contextlib.contextmanager
def _own_cancellations() -> Iterator[None]:
    """Take back what the function's own code leaves of cancellations of the task.

    A TaskGroup of asyncio that fails leaves its task marked as cancelled in Python 3.11. The scopes
    around would take that for their own end, and the worker would lose a slot in silence.
    """
    in_asyncio = anyio.get_cancelled_exc_class() is asyncio.CancelledError
    task = asyncio.current_task() if in_asyncio else None
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        # Cancelled from outside, it is marked by a scope, which takes that back itself.
        if task is not None and anyio.current_effective_deadline() != -math.inf:
            while task.cancelling() > before:
                task.uncancel()


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _failed(execution: Execution, error: BaseException, raised: list[BaseException]) -> Ending:
    """Return the end of a process whose function raised; its log gets the traceback."""
    # The first frames are the worker's and of threads, no matter of the function's author.
    own = frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == __file__:
            own = frame.tb_next
        frame = frame.tb_next
    lines = traceback.format_exception(type(error), error, own)
    trace = "".join(lines).encode(errors="replace")[-_MOST_TRACE:]
    execution.stderr(trace)
    return Ending([], [line_of_error(each) for each in raised])
