"""The line between the serving process and the engine process. Imports no torch.

A frame is a 4-byte big-endian length and that many bytes of JSON, an object with a `kind`. To the engine go `submit`,
`cancel` and `shutdown`; from it come `ready`, `failed`, `refused`, `events`, `counters` and `draining`.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from fledge import errors
from fledge.engine.constraint import Constraint
from fledge.engine.overflow import LongInput
from fledge.engine.request import BeamSearch, Event, Request, Sampling, TokenLogprob
from fledge.errors import EngineError, FledgeError, RequestError

MAX_FRAME_BYTES = 64 << 20
HEADER = struct.Struct(">I")

Frame = dict[str, Any]


def pack(frame: Frame) -> bytes:
    """The bytes of a frame. Lone surrogates and non-finite numbers pass. Raises EngineError above MAX_FRAME_BYTES."""
    body = json.dumps(frame, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(f"engine: expected a frame of at most {MAX_FRAME_BYTES} bytes, got {len(body)}")
    return HEADER.pack(len(body)) + body


def unpack(body: bytes) -> Frame:
    """Raises EngineError for bytes that are no frame."""
    try:
        frame = json.loads(body)
        if isinstance(frame["kind"], str):
            return frame
    except (ValueError, KeyError, TypeError):
        pass
    raise EngineError("engine: expected a frame with its kind, got something else")


def body_length(header: bytes | bytearray) -> int:
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise EngineError(f"engine: expected a frame of at most {MAX_FRAME_BYTES} bytes, got {length}")
    return length


def receive(connection: socket.socket) -> Frame | None:
    """The next frame, blocking; None at the end of the line, in mid frame too."""
    header = receive_exactly(connection, HEADER.size)
    if header is None:
        return None
    body = receive_exactly(connection, body_length(header))
    return None if body is None else unpack(body)


def receive_exactly(connection: socket.socket, n_bytes: int) -> bytes | None:
    pieces = bytearray()
    while len(pieces) < n_bytes:
        try:
            piece = connection.recv(min(1 << 20, n_bytes - len(pieces)))
        except ConnectionError:
            return None
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)


def request_to_plain(request: Request) -> Frame:
    """By `vars`, since `asdict` copies every value down to the last and takes twenty times as long."""
    sampling, constraint, long_input = vars(request.sampling), request.sampling.constraint, request.long_input
    search = None if request.search is None else vars(request.search)
    if constraint is not None:
        sampling = {**sampling, "constraint": vars(constraint)}
    long_input_plain = None if long_input is None else vars(long_input)
    return {**vars(request), "sampling": sampling, "long_input": long_input_plain, "search": search}


def request_from_plain(plain: Frame) -> Request:
    sampling = dict(plain["sampling"])
    sampling["logit_bias"] = tuple((token, bias) for token, bias in sampling["logit_bias"])
    for name in ("stop", "stop_token_ids"):
        sampling[name] = tuple(sampling[name])
    if (constraint := sampling["constraint"]) is not None:
        source = constraint["source"]
        source = source if isinstance(source, str) else tuple(source)
        sampling["constraint"] = Constraint(**{**constraint, "source": source})
    ids = {name: tuple(plain[name]) for name in ("prompt_ids", "source_ids")}
    long_input = None if plain["long_input"] is None else LongInput(**plain["long_input"])
    search = None if plain["search"] is None else BeamSearch(**plain["search"])
    return Request(**{**plain, **ids, "sampling": Sampling(**sampling), "long_input": long_input, "search": search})


def event_to_plain(event: Event) -> list[Any]:
    """A list in the order of Event's fields: short, and there is one a token."""
    prompt = event.prompt_logprobs
    return [
        event.request_id,
        event.index,
        event.token_ids,
        event.text,
        [logprob_to_plain(one) for one in event.logprobs],
        event.finish_reason,
        event.error,
        None if prompt is None else [logprob_to_plain(one) for one in prompt],
        event.score,
    ]


def event_from_plain(plain: list[Any]) -> Event:
    request_id, index, token_ids, text, logprobs, finish_reason, error, prompt, score = plain
    known = [one for one in map(logprob_from_plain, logprobs) if one is not None]
    return Event(
        request_id,
        index,
        tuple(token_ids),
        text,
        tuple(known),
        finish_reason,
        error,
        None if prompt is None else tuple(map(logprob_from_plain, prompt)),
        score,
    )


def logprob_to_plain(one: TokenLogprob | None) -> list[Any] | None:
    return None if one is None else [one.token_id, one.logprob, one.top]


def logprob_from_plain(plain: list[Any] | None) -> TokenLogprob | None:
    if plain is None:
        return None
    token_id, logprob, top = plain
    return TokenLogprob(token_id, logprob, tuple((token, value) for token, value in top))


def error_to_plain(error: FledgeError) -> Frame:
    plain: Frame = {"class": type(error).__name__, "message": str(error)}
    if isinstance(error, RequestError):
        plain |= {"param": error.param, "code": error.code}
    return plain


def error_from_plain(plain: Frame) -> FledgeError:
    """The error of the class that was raised on the other side; EngineError for a class that is not fledge's."""
    cls = getattr(errors, plain["class"], EngineError)
    if cls is RequestError:
        return RequestError(plain["message"], plain["param"], plain["code"])
    if cls is errors.PeerError:
        return EngineError(f"engine: {plain['message']}, which says why; start all processes again")
    if isinstance(cls, type) and issubclass(cls, FledgeError):
        return cls(plain["message"])
    return EngineError(plain["message"])
