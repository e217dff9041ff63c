"""Load on a server of OpenAI's API, and the figures of what came back. A client of its own: it has to be light, since
it may share a core with what it measures.

Times are the client's, in seconds, of requests that were due at t_due (open loop: by the schedule, whether or not the
client was in time; closed loop: when the one before had ended). t_1 … t_k are the times at which pieces of text that
are not empty came, an event without text is none; n is usage's completion tokens, of which the last may be a stop
token.

    time to first token    TTFT = t_1 - t_due
    inter-token latency    ITL  = t_(i+1) - t_i, every one of them, of all answers together
    time per output token  TPOT = (t_k - t_1) / (n - 1), one an answer
    latency                E2E  = end of the answer - t_due
    throughput             sum of n / (last end - first t_due)
    goodput                answers with TTFT <= a and TPOT <= b, over all requests that were sent, refused ones too
    percentile p           of sorted x_0 … x_(m-1): linear between the neighbours of x at p (m - 1) / 100
    interval of one        95 %, percentile bootstrap: 1,000 resamples of requests, or of ITLs

A server that sends several tokens in one piece has a long ITL and a short TPOT; read both.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

PATH = "/v1/completions"
RESAMPLES = 1000


@dataclass
class Outcome:
    """What came back for one request. Times by time.perf_counter(); status 0: no answer."""

    due: float
    status: int = 0
    retry_after: str | None = None
    text_times: list[float] = field(default_factory=list)
    text: str = ""
    usage: dict[str, int] | None = None
    error: str | None = None
    finish_reason: str | None = None
    ended: float = 0.0

    @property
    def answered(self) -> bool:
        return self.status == 200 and self.error is None and self.finish_reason is not None

    @property
    def n_tokens(self) -> int:
        return self.usage["completion_tokens"] if self.usage else 0

    @property
    def first(self) -> float:
        return self.text_times[0] - self.due

    @property
    def per_token(self) -> float:
        return (self.text_times[-1] - self.text_times[0]) / max(1, self.n_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.text_times, self.text_times[1:], strict=False)]

    @property
    def whole(self) -> float:
        return self.ended - self.due


class Exchange(asyncio.Protocol):
    """One request on a connection of its own, its answer read as it comes: chunked, or of a known length."""

    def __init__(self, request: bytes, outcome: Outcome):
        self.request, self.outcome = request, outcome
        self.raw, self.body, self.left = bytearray(), bytearray(), 0
        self.chunked = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.raw += data
        if not self.outcome.status and not self.read_head():
            return
        over = self.read_chunks() if self.chunked else self.read_rest()
        while (end := self.body.find(b"\n\n")) >= 0:
            self.read_frame(bytes(self.body[:end]), now)
            del self.body[: end + 2]
        if over:
            self.finish(now)

    def read_head(self) -> bool:
        end = self.raw.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self.raw[:end].decode("latin-1").split("\r\n")
        del self.raw[: end + 4]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.outcome.status = int(first.split(" ")[1])
        self.outcome.retry_after = headers.get("retry-after")
        self.chunked = headers.get("transfer-encoding", "") == "chunked"
        self.left = int(headers.get("content-length", 0))
        return True

    def read_chunks(self) -> bool:
        """Move whole chunks into the body; whether the last has come."""
        while (end := self.raw.find(b"\r\n")) >= 0:
            size = int(self.raw[:end], 16)
            if len(self.raw) < end + 2 + size + 2:
                return False
            self.body += self.raw[end + 2 : end + 2 + size]
            del self.raw[: end + 2 + size + 2]
            if not size:
                return True
        return False

    def read_rest(self) -> bool:
        if len(self.raw) < self.left:
            return False
        answer = json.loads(self.raw) if self.raw else {}
        self.outcome.error = (answer.get("error") or {}).get("code") or self.outcome.error
        return True

    def read_frame(self, frame: bytes, now: float) -> None:
        if not frame.startswith(b"data: ") or frame == b"data: [DONE]":
            return
        tree, outcome = json.loads(frame[6:]), self.outcome
        if "error" in tree:
            outcome.error = tree["error"]["code"] or "error"
            return
        outcome.usage = tree.get("usage") or outcome.usage
        for choice in tree["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            if text:
                outcome.text_times.append(now)
                outcome.text += text
            outcome.finish_reason = choice["finish_reason"] or outcome.finish_reason

    def connection_lost(self, error: Exception | None) -> None:
        self.finish(time.perf_counter())

    def finish(self, now: float) -> None:
        if not self.done.done():
            self.outcome.ended = now
            self.done.set_result(None)
            self.transport.close()


def request_bytes(body: dict[str, Any], path: str = PATH, key: str = "") -> bytes:
    """A request that closes its connection."""
    data = json.dumps(body).encode()
    lines = ["host: localhost", "connection: close", "content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"authorization: Bearer {key}"] if key else []
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode() + data


async def ask(url: str, body: dict[str, Any], due: float | None = None, local: str = "", key: str = "") -> Outcome:
    """Send one completion, streamed and with its usage, from the address `local`."""
    outcome = Outcome(time.perf_counter() if due is None else due)
    request = request_bytes({**body, "stream": True, "stream_options": {"include_usage": True}}, key=key)
    parts = urlsplit(url)
    address = (local, 0) if local else None
    try:
        _, exchange = await asyncio.get_running_loop().create_connection(
            lambda: Exchange(request, outcome), parts.hostname, parts.port, local_addr=address
        )
    except OSError as error:
        outcome.error, outcome.ended = type(error).__name__, time.perf_counter()
        return outcome
    try:
        await exchange.done
    finally:
        exchange.transport.abort()
    return outcome


async def closed_loop(send: Callable[[int], Awaitable[Outcome]], n: int, n_callers: int) -> list[Outcome]:
    """`n` requests by `n_callers` callers, each of whom sends the next when the one before has ended."""
    numbers = iter(range(n))
    outcomes: list[Outcome] = []

    async def caller() -> None:
        for number in numbers:
            outcomes.append(await send(number))

    await asyncio.gather(*(caller() for _ in range(n_callers)))
    return outcomes


async def open_loop(send: Callable[[int, float], Awaitable[Outcome]], times: Sequence[float]) -> list[Outcome]:
    """Request i at times[i] seconds from now, however many are under way."""
    began = time.perf_counter()
    tasks = []
    for number, at in enumerate(times):
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        tasks.append(asyncio.ensure_future(send(number, began + at)))
    return list(await asyncio.gather(*tasks))


def poisson_times(rate: float, n: int, seed: int) -> list[float]:
    """Arrival times of `n` requests at `rate` a second: sums of exponential gaps."""
    draw, at, times = random.Random(seed), 0.0, []
    for _ in range(n):
        at += draw.expovariate(rate)
        times.append(at)
    return times


def percentile(values: Iterable[float], p: float) -> float:
    return float(np.percentile(list(values), p))


def interval(values: Sequence[float], p: float, seed: int = 1) -> tuple[float, float]:
    """95 % bootstrap interval of a percentile."""
    draw, data = np.random.default_rng(seed), np.asarray(values)
    data = data if len(data) <= 20_000 else draw.choice(data, 20_000, replace=False)
    found = [np.percentile(draw.choice(data, len(data)), p) for _ in range(RESAMPLES)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Milliseconds: mean, p50, p90, p99, the interval of p99, n."""
    if not values:
        return {"n": 0}
    scaled = [1000 * value for value in values]
    points = {f"p{p}": round(percentile(scaled, p), 2) for p in (50, 90, 99)}
    low, high = interval(scaled, 99)
    return {
        "n": len(scaled),
        "mean": round(float(np.mean(scaled)), 2),
        **points,
        "p99_interval": [round(low, 2), round(high, 2)],
    }


def throughput(outcomes: Sequence[Outcome]) -> float:
    """Tokens a second."""
    seconds = max(one.ended for one in outcomes) - min(one.due for one in outcomes)
    return sum(one.n_tokens for one in outcomes if one.answered) / seconds


def goodput(outcomes: Sequence[Outcome], first_seconds: float, per_token_seconds: float) -> float:
    """Share of the requests whose answers came whole and in time."""
    good = [one for one in outcomes if one.answered and one.first <= first_seconds]
    return sum(one.per_token <= per_token_seconds for one in good) / len(outcomes)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a run."""
    answered = [one for one in outcomes if one.answered]
    return {
        "requests": len(outcomes),
        "answered": len(answered),
        "refused": sum(one.status == 503 for one in outcomes),
        "tokens_per_second": round(throughput(outcomes), 1),
        "ttft_ms": spread([one.first for one in answered]),
        "itl_ms": spread([gap for one in answered for gap in one.gaps]),
        "tpot_ms": spread([one.per_token for one in answered]),
        "e2e_ms": spread([one.whole for one in answered]),
    }
