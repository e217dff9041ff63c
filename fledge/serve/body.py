"""A request's body: read with a limit and a deadline, parsed as strict JSON, every number and text in it usable.

Python's parser accepts NaN, 1e999 (infinite) and lone surrogates; each of them is a 400 that names its place here.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect, Request

from fledge.errors import RequestError
from fledge.serve.errors import ApiError

MAX_INTEGER_DIGITS = 40
MAX_PLACE = 200  # characters of a place in a message
IN_THREAD_BYTES = 1 << 18  # a larger body would hold up every other stream for milliseconds


async def read_json(request: Request, max_bytes: int, seconds: float) -> dict[str, Any]:
    """The JSON object of a request. Raises ApiError 415, 413 (too large), 408 (too slow), 400."""
    check_headers(request, max_bytes)
    try:
        async with asyncio.timeout(seconds):
            data = await collect(request, max_bytes)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {seconds:g} seconds.", headers=[CLOSE]) from None
    if len(data) > IN_THREAD_BYTES:
        return await asyncio.to_thread(parse_object, data)
    return parse_object(data)


CLOSE = ("connection", "close")


def check_headers(request: Request, max_bytes: int) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        # A cross-site form can send any other type without asking first, so the type is a guard as well.
        raise ApiError(415, "content-type: expected application/json; send the header Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(415, "content-encoding: compressed bodies are not accepted; send plain JSON.", headers=[CLOSE])
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body is larger than {max_bytes} bytes.", headers=[CLOSE])


async def collect(request: Request, max_bytes: int) -> bytes:
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise too_large(max_bytes)
            parts.append(part)
    except ClientDisconnect:
        raise ApiError(400, "The body ended early.", headers=[CLOSE]) from None
    return b"".join(parts)


Place: TypeAlias = "tuple[Place, str | int] | None"
"""What a value stands in, and its key or number there; None: the body. Written out in messages alone."""
Steps: TypeAlias = Iterator[tuple[str | int, Any]]
"""Keys or numbers with their values: what of a value is not walked yet."""


class LongInteger(str):
    """The digits of an integer too long to be any parameter's value."""


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object whose texts hold no lone surrogate and whose numbers are finite. Raises RequestError."""
    if not data.strip():
        raise RequestError("The body is empty; expected a JSON object.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not UTF-8: byte {error.start} can't be decoded.") from None
    try:
        tree = json.loads(text, parse_int=parse_integer)
    except json.JSONDecodeError as error:
        raise RequestError(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except (RecursionError, ValueError):
        raise RequestError("The body is not usable JSON: it is nested too deeply.") from None
    if not isinstance(tree, dict):
        raise RequestError(f"The body is {json_type(tree)}; expected a JSON object.")
    check_tree(tree)
    return tree


def parse_integer(digits: str) -> int | LongInteger:
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else LongInteger(digits)


def check_tree(tree: dict[str, Any]) -> None:
    """Walk every value in order, with memory for the depth alone (no recursion: depth is the caller's choice). `param`
    is the top-level field it stands in."""
    open_ones: list[tuple[Place, Steps]] = [(None, iter(tree.items()))]
    while open_ones:
        place, steps = open_ones[-1]
        for step, value in steps:
            if isinstance(step, str) and not step.isascii():
                check_text(step, place, is_key=True)
            if isinstance(value, dict):
                open_ones.append(((place, step), iter(value.items())))
                break
            if isinstance(value, list):
                open_ones.append(((place, step), enumerate(value)))
                break
            if isinstance(value, LongInteger):
                raise at((place, step), f"expected a number, got an integer of {len(value)} digits")
            if isinstance(value, str) and not value.isascii():
                check_text(value, (place, step))
            elif isinstance(value, float) and not math.isfinite(value):
                raise at((place, step), "expected a finite number, got NaN or an infinite one")
        else:
            open_ones.pop()


def check_text(text: str, place: Place, is_key: bool = False) -> None:
    """Raises RequestError for a lone surrogate in the text at `place`, or in a key of what stands there."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        unit = ord(text[error.start])
        problem = f"lone surrogate U+{unit:04X} at character {error.start}; send valid Unicode"
        if is_key:
            raise RequestError(f"a key of {written(place) or 'the body'}: {problem}") from None
        raise at(place, problem) from None


def at(place: Place, problem: str) -> RequestError:
    text = written(place)
    param = text.partition(".")[0].partition("[")[0]
    return RequestError(f"{text}: {problem}", None if " " in param else param)


def written(place: Place) -> str:
    """A place as a message has it, its middle left out where it is long."""
    parts: list[str] = []
    while place is not None:
        place, step = place
        parts.append(f"[{step}]" if isinstance(step, int) else f".{shown_key(step)}")
    text = "".join(reversed(parts)).removeprefix(".")
    return text if len(text) <= MAX_PLACE else f"{text[: MAX_PLACE // 2]}…{text[-MAX_PLACE // 2 :]}"


def shown_key(key: str) -> str:
    return key if key.isascii() and key.isidentifier() and len(key) <= 64 else json.dumps(key[:64])


def json_type(value: object) -> str:
    """The JSON name of a value's type, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "a value")


def shown(value: object) -> str:
    """A value for a message: its JSON, short, control characters escaped, with its type."""
    if isinstance(value, dict | list) or value is None:
        return json_type(value)
    text = json.dumps(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({json_type(value)})"
