"""Functions in Python: their arguments, their results, what becomes of their exceptions."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import anyio
import msgspec
import pytest

from colonyd import BlockingContext, Context, Failed, PrivateKey
from colonyd.rpc import RpcClient, Signed
from colonyd.worker.functions import FunctionHandler, Retry, Signature, output_of
from colonyd.worker.handler import Ending, Execution
from colonyd.worker.livelog import LiveLog


class Colour(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclass
class Box:
    corner: Point
    name: str


GOOD = {"corner": {"x": 1}, "name": "b"}


def execution(*args: Any, **kwargs: Any) -> Execution:
    process = {"processid": "p", "spec": {"funcname": "f", "args": [*args], "kwargs": kwargs}}
    return Execution(
        process, Signed(RpcClient("http://127.0.0.1:1"), PrivateKey.generate()), LiveLog()
    )


async def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Ending:
    handler = FunctionHandler(
        function, Signature.of(function, "f"), Retry(), anyio.CapacityLimiter(1)
    )
    return await handler(execution(*args, **kwargs))


def area(box: Box, scale: float = 1.0, *, unit: str = "m") -> str:
    return f"{box.corner.x * box.corner.y * scale:g} {unit} {box.name}"


@pytest.mark.parametrize(
    ("args", "kwargs", "error"),
    [
        ([{"corner": {"x": "2"}, "name": "b"}], {}, "box.corner.x: expected `int`, got `str`"),
        ([{"corner": {"x": 2}}], {}, "box: object missing required field `name`"),
        ([{"corner": {"x": 2}, "name": "b"}, "3"], {}, "scale: expected `float`, got `str`"),
        ([], {}, "box: f needs this argument"),
        ([], {"scale": 1}, "box: f needs this argument"),
        ([GOOD], {"size": 1}, "size: f has no such argument; it has: box, scale, unit"),
        ([GOOD], {"unit": 3}, "unit: expected `str`, got `int`"),
        ([GOOD], {"box": 3}, "box: given twice, in args and in kwargs"),
        ([1, 2, 3], {}, "args: f takes at most 2, and got 3"),
    ],
)  # fmt: skip
async def test_a_wrong_argument_fails_the_process_with_its_name(
    args: list[Any], kwargs: dict[str, Any], error: str
) -> None:
    assert await called(area, *args, **kwargs) == Ending([], [error])


async def test_arguments_become_values_of_the_declared_types() -> None:
    box = {"corner": {"x": 2, "y": 3}, "name": "b"}
    assert (await called(area, box)).out == ["6 m b"]
    assert (await called(area, box=box, unit="ft", scale=2)).out == ["12 ft b"]

    def typed(
        when: datetime,
        colour: Colour,
        data: bytes,
        count: Annotated[int, msgspec.Meta(ge=1)],
        maybe: int | None = None,
        *rest: Point,
        **others: int,
    ) -> list[Any]:
        return [when, colour, data, count, maybe, [*rest], others]

    out = (await called(typed, "2026-01-02T03:04:05Z", "red", "aGk=", 1, None, {"x": 5}, n=7)).out
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert out == output_of([when, Colour.RED, b"hi", 1, None, [Point(5)], {"n": 7}], "f")
    wrong = (await called(typed, "2026-01-02T03:04:05Z", "red", "aGk=", 0)).errors
    assert wrong == ["count: expected `int` >= 1"]
    wrong = (await called(typed, "2026-01-02T03:04:05Z", "red", "aGk=", 1, None, {"x": "5"})).errors
    assert wrong == ["rest[0].x: expected `int`, got `str`"]


@pytest.mark.parametrize(
    ("value", "out"),
    [
        (None, []),
        (3, [3]),
        ((1, "b"), [1, "b"]),
        ([1, 2], [[1, 2]]),
        (Point(1), [{"x": 1, "y": 0}]),
        (b"hi", ["aGk="]),
        ({1: 2}, [{"1": 2}]),
        ((), []),
    ],
)
async def test_a_result_becomes_the_output(value: Any, out: list[Any]) -> None:
    assert (await called(lambda: value)).out == out


async def test_a_result_without_a_form_in_json_is_told() -> None:
    (error,) = (await called(lambda: object())).errors
    assert error.startswith("the result of f: ")
    loop: list[Any] = []
    loop.append(loop)
    (error,) = (await called(lambda: loop)).errors
    assert error.startswith("the result of f: ")
    assert math.isnan((await called(lambda: math.nan)).out[0])  # the colony refuses it, by name


async def test_an_exception_is_the_error_and_its_traceback_is_logged() -> None:
    async def divide(a: int, b: int) -> float:
        return a / b

    handler = FunctionHandler(divide, Signature.of(divide, "f"), Retry(), anyio.CapacityLimiter(1))
    run = execution(1, 0)
    assert await handler(run) == Ending([], ["ZeroDivisionError: division by zero"])
    logged = run.feed.take()
    assert "return a / b" in logged
    assert "/functions.py" not in logged  # the worker's own frames tell its author nothing


async def test_the_traceback_of_a_thread_begins_with_the_function() -> None:
    def fail() -> None:
        raise KeyError("k")

    handler = FunctionHandler(fail, Signature.of(fail, "f"), Retry(), anyio.CapacityLimiter(1))
    run = execution()
    assert (await handler(run)).errors == ["KeyError: 'k'"]
    lines = run.feed.take().splitlines()
    assert lines[1].endswith("in fail")


async def test_failed_names_the_errors_alone() -> None:
    def no() -> None:
        raise Failed("the tank is empty", "fill it")

    assert await called(no) == Ending([], ["the tank is empty", "fill it"])


async def test_declared_exceptions_are_tried_again() -> None:
    tried: list[int] = []

    async def flaky(context: Context) -> str:
        tried.append(context.attempt)
        if len(tried) < 3:
            raise ConnectionError("away")
        return "done"

    retry = Retry((OSError,), 3, 0.0)
    threads = anyio.CapacityLimiter(1)
    run = execution()
    ending = await FunctionHandler(flaky, Signature.of(flaky, "f"), retry, threads)(run)
    assert ending == Ending(["done"], [])
    assert tried == [1, 2, 3]
    assert "attempt 2: ConnectionError: away" in run.feed.take()
    tried.clear()
    retry = Retry((OSError,), 2, 0.0)
    ending = await FunctionHandler(flaky, Signature.of(flaky, "f"), retry, threads)(execution())
    assert ending.errors == ["ConnectionError: away"]


def test_a_function_gets_the_context_of_its_kind() -> None:
    def sync(context: Context) -> None: ...
    async def waits(context: BlockingContext) -> None: ...
    def twice(one: BlockingContext, other: BlockingContext) -> None: ...

    for function in (sync, waits, twice):
        with pytest.raises(TypeError, match="one parameter may be a"):
            Signature.of(function, "f")


async def test_a_context_can_not_be_given_from_outside() -> None:
    def told(text: str, context: BlockingContext) -> str:
        return f"{text} {context.id}"

    assert (await called(told, "a")).out == ["a p"]
    assert (await called(told, "a", "b")).errors == ["args: f takes at most 1, and got 2"]
    assert (await called(told, "a", context=1)).errors == [
        "context: f has no such argument; it has: text"
    ]


async def test_the_context_stands_anywhere() -> None:
    def first(context: BlockingContext, a: int, b: int = 2) -> list[Any]:
        return [context.id, a, b]

    def middle(a: int, context: BlockingContext, b: int = 2) -> list[Any]:
        return [context.id, a, b]

    def named(a: int, b: int = 2, *, context: BlockingContext) -> list[Any]:
        return [context.id, a, b]

    def rest(a: int, context: BlockingContext, *b: int) -> list[Any]:
        return [context.id, a, *b]

    def last(a: int, *b: int, context: BlockingContext) -> list[Any]:
        return [context.id, a, *b]

    for function in (first, middle, named, rest, last):
        assert (await called(function, 1, 5)).out == [["p", 1, 5]], function
    for function in (first, middle, named):
        assert (await called(function, 1)).out == [["p", 1, 2]], function
        assert (await called(function, a=1, b=3)).out == [["p", 1, 3]], function
        assert (await called(function)).errors == ["a: f needs this argument"], function
        errors = (await called(function, 1, 2, 3)).errors
        assert errors == ["args: f takes at most 2, and got 3"], function


async def test_the_outputs_of_the_nodes_before_follow_the_arguments() -> None:
    run = execution(1)
    process = {**run.process, "in": [2, 3]}

    def gather(*values: int) -> list[int]:
        return [*values]

    threads = anyio.CapacityLimiter(1)
    handler = FunctionHandler(gather, Signature.of(gather, "f"), Retry(), threads)
    assert (await handler(Execution(process, run.signed, run.feed))).out == [[1, 2, 3]]
