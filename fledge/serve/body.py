"""A request's body: read with a limit and a deadline, parsed as strict JSON, every number and text in it usable.

Python's parser accepts NaN, 1e999 (infinite) and lone surrogates; each of them is a 400 that names its place here.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from starlette.requests import ClientDisconnect, Request

from fledge.errors import RequestError
from fledge.serve.errors import ApiError

MAX_INTEGER_DIGITS = 40
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
    """Walk every value (no recursion: depth is the caller's choice). `param` is the top-level field it stands in."""
    pending: list[tuple[str, Any]] = [("", tree)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, LongInteger):
            raise at(place, f"expected a number, got an integer of {len(value)} digits")
        if isinstance(value, str):
            check_text(place, value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise at(place, "expected a finite number, got NaN or an infinite one")
        elif isinstance(value, dict):
            for key in value:
                check_text(f"a key of {place or 'the body'}", key)
            pending.extend(
                (f"{place}.{shown_key(key)}" if place else shown_key(key), item) for key, item in value.items()
            )
        elif isinstance(value, list):
            # A long list of token ids is by far the commonest large value: skip naming each plain integer.
            pending.extend((f"{place}[{i}]", item) for i, item in enumerate(value) if type(item) is not int)


def check_text(place: str, text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        unit = ord(text[error.start])
        raise at(place, f"lone surrogate U+{unit:04X} at character {error.start}; send valid Unicode") from None


def at(place: str, problem: str) -> RequestError:
    param = place.partition(".")[0].partition("[")[0]
    return RequestError(f"{place}: {problem}", None if " " in param else param)


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
