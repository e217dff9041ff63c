"""What is done to a running server to learn how it bears load: each scene gives its figures as a plain tree.

Prompts are of letters, so that a stub's byte-level tokenizer makes a token of each; answers go on to `max_tokens`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.load import Outcome, ask, closed_loop, goodput, open_loop, percentile, poisson_times, spread, summary
from bench.served import Served

FLOOD_PAUSE_SECONDS = 0.1  # of a caller who comes back at once, whatever Retry-After says
NORMAL = 1.5  # times the quiet time to first token


def letters(seed: int, n: int) -> str:
    """A prompt that no other seed shares."""
    draw = random.Random(seed)
    return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(n))


def sender(
    server: Served, prompt_tokens: int, max_tokens: int, local: str = "", prompts: list[Any] | None = None
) -> Callable[..., Awaitable[Outcome]]:
    """A function that sends request `number`; greedy, as long as `max_tokens`. `prompts` in place of letters."""

    def send(number: int, due: float | None = None) -> Awaitable[Outcome]:
        prompt = prompts[number % len(prompts)] if prompts else letters(number, prompt_tokens)
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        return ask(server.url, body, due, local)

    return send


async def sweep(
    send: Callable[..., Awaitable[Outcome]], n_callers: list[int], n_requests: Callable[[int], int]
) -> dict[str, Any]:
    """Closed loops of more and more callers, after a request that does not count."""
    await send(0)
    return {str(c): summary(await closed_loop(send, n_requests(c), c)) for c in n_callers}


async def poisson(
    send: Callable[..., Awaitable[Outcome]], rate: float, n: int, first_seconds: float, per_token_seconds: float
) -> dict[str, Any]:
    """An open loop of `n` requests at `rate` a second."""
    outcomes = await open_loop(send, poisson_times(rate, n, seed=1))
    good = goodput(outcomes, first_seconds, per_token_seconds)
    figures = summary(outcomes)
    answered = [one for one in outcomes if one.answered]
    of_answered = goodput(answered, first_seconds, per_token_seconds) if answered else 0.0
    span = max(one.ended for one in outcomes) - min(one.due for one in outcomes)
    return {
        "requests_per_second": round(rate, 3),
        **figures,
        "goodput": round(good, 4),
        "goodput_of_answered": round(of_answered, 4),
        "good_requests_per_second": round(good * len(outcomes) / span, 3),
    }


class Memory:
    """Resident memory of server and engine while a scene runs, a sample a second."""

    def __init__(self, server: Served):
        self.server = server
        self.samples: list[float] = []

    async def watch(self) -> None:
        while True:
            figures = await asyncio.to_thread(self.server.figures)
            names = ("fledge_process_resident_memory_bytes", "fledge_engine_process_resident_memory_bytes")
            self.samples.append(sum(figures[name] for name in names) / 2**20)
            await asyncio.sleep(1.0)


async def overload(
    server: Served, max_tokens: int, n_slots: int, seconds: float, queue_seconds: float, times: float = 10.0
) -> dict[str, Any]:
    """Peak throughput, then `times` as many requests as that for `seconds`, then how soon all is normal again."""
    send = sender(server, 16, max_tokens)
    quiet = [(await send(number)).first for number in range(5)]
    peak = await closed_loop(send, 8 * n_slots, 2 * n_slots)
    peak_rate = len(peak) / (max(one.ended for one in peak) - min(one.due for one in peak))
    before, memory = server.figures(), Memory(server)
    await asyncio.sleep(0)
    watching = asyncio.create_task(memory.watch())
    flood = await open_loop(send, poisson_times(times * peak_rate, int(times * peak_rate * seconds), seed=2))
    flood_ended = max(one.due for one in flood)
    back = await until_normal(send, percentile(quiet, 50), flood_ended)
    watching.cancel()
    after = server.figures()
    refused = [one for one in flood if one.status == 503]
    at_once = [one for one in refused if one.whole < queue_seconds / 2]
    admitted = [one for one in flood if one.status == 200]
    late = [one for one in flood if one not in at_once and not one.answered]
    in_time = goodput(admitted, queue_seconds + 0.25, 1.0) if admitted else 0.0
    began = min(one.due for one in flood)
    during = sum(one.n_tokens for one in flood if one.answered and one.ended <= flood_ended)
    made = after["fledge_engine_generated_tokens_total"] - before["fledge_engine_generated_tokens_total"]
    said = sum(one.n_tokens for one in flood) + back["tokens"]
    third = max(1, len(memory.samples) // 3)
    return {
        "peak_requests_per_second": round(peak_rate, 2),
        "offered_requests_per_second": round(times * peak_rate, 2),
        "requests": len(flood),
        "answered": sum(one.answered for one in flood),
        "refused_at_once": len(at_once),
        "given_up_in_the_line": len(late),
        "other": len(flood) - len(refused) - len(admitted),
        "refusal_ms": spread([one.whole for one in at_once]),
        "retry_after_is_an_integer": all((one.retry_after or "").isdecimal() for one in refused),
        "ttft_ms": spread([one.first for one in admitted if one.text_times]),
        "admitted_in_time": round(in_time * len(admitted) / max(1, len(admitted) + len(late)), 4),
        "throughput_of_peak": round(during / (flood_ended - began) / (max_tokens * peak_rate), 4),
        "tokens_made_for_nobody": int(made - said),
        "memory_mib": [round(value, 1) for value in (memory.samples[0], memory.samples[third], memory.samples[-1])],
        "normal_after_seconds": round(back["seconds"], 2),
    }


async def until_normal(send: Callable[..., Awaitable[Outcome]], quiet: float, since: float) -> dict[str, float]:
    """Seconds from `since` until a request is answered as soon as in quiet."""
    tokens = 0
    while time.perf_counter() < since + 60:
        one = await send(10**6)
        tokens += one.n_tokens
        if one.answered and one.first <= NORMAL * quiet + 0.005:
            break
        await asyncio.sleep(0.1)
    return {"seconds": time.perf_counter() - since, "tokens": tokens}


async def fairness(
    server: Served, n: int, rate: float, n_flooders: int, max_tokens: int, other: str = "127.0.0.2"
) -> dict[str, Any]:
    """Time to first token of one caller, `n` requests at `rate` a second: alone, then beside a flood of `n_flooders`
    who come back at once. `other` is the address of the first; another is another caller to the server."""
    send = sender(server, 128, max_tokens // 4, local=other)
    flood_send = sender(server, 16, max_tokens)
    await send(0)
    quiet = await open_loop(send, poisson_times(rate, n, seed=3))
    flooding = asyncio.gather(*(flooder(flood_send, 1000 * (1 + number)) for number in range(n_flooders)))
    try:
        await asyncio.sleep(1.0)
        flooded = await open_loop(send, poisson_times(rate, n, seed=3))
    finally:
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
    answered = [[one.first for one in some if one.answered] for some in (quiet, flooded)]
    p99 = [percentile(some, 99) if some else float("inf") for some in answered]
    return {
        "quiet_ttft_ms": spread(answered[0]),
        "flooded_ttft_ms": spread(answered[1]),
        "refused": sum(one.status == 503 for one in flooded),
        "p99_ratio": round(p99[1] / p99[0], 3),
    }


async def flooder(send: Callable[..., Awaitable[Outcome]], number: int) -> None:
    while True:
        number += 1
        if not (await send(number)).answered:
            await asyncio.sleep(FLOOD_PAUSE_SECONDS)


async def long_prompts(
    server: Served, n_short: int, max_tokens: int, prompt_tokens: int, n_long: int
) -> dict[str, Any]:
    """Inter-token latency of `n_short` running answers: alone, and while prompts of `prompt_tokens` are read."""
    short, long = sender(server, 16, max_tokens), sender(server, prompt_tokens, 1)
    running = [asyncio.ensure_future(short(number)) for number in range(n_short)]
    await asyncio.sleep(0.5)
    spans = []
    for number in range(n_long):
        one = await long(100 + number)
        spans.append((one.due, one.ended))
        await asyncio.sleep(0.1)
    outcomes = await asyncio.gather(*running)
    beside, alone = [], []
    for times in (one.text_times for one in outcomes):
        for before, after in zip(times, times[1:], strict=False):
            reading = any(before < end and after > begin for begin, end in spans)
            (beside if reading else alone).append(after - before)
    seconds = [end - begin for begin, end in spans]
    return {"alone_ms": spread(alone), "beside_ms": spread(beside), "long_prompt_ttft_ms": spread(seconds)}


async def truth(server: Served, n: int, n_callers: int, max_tokens: int) -> dict[str, Any]:
    """The server's figures of `n` requests over the client's; each ratio should be 1. Tokens are counted anew from the
    text, of which a stub's tokenizer makes one a byte."""
    send = sender(server, 32, max_tokens)
    await send(0)
    before = server.figures()
    outcomes = await closed_loop(send, n, n_callers)
    after = server.figures()
    moved = {name: after[name] - before.get(name, 0.0) for name in after}

    def mean(name: str) -> float:
        return moved[f"fledge_{name}_seconds_sum"] / moved[f"fledge_{name}_seconds_count"]

    gaps = [gap for one in outcomes for gap in one.gaps]
    recounted = sum(len(one.text.encode()) for one in outcomes)
    return {
        "answered": sum(one.answered for one in outcomes),
        "ttft": mean("time_to_first_token") / (sum(one.first for one in outcomes) / n),
        "itl": mean("inter_token_latency") / (sum(gaps) / len(gaps)),
        "e2e": mean("e2e_request_latency") / (sum(one.whole for one in outcomes) / n),
        "requests": moved["fledge_e2e_request_latency_seconds_count"] / n,
        "tokens_server": moved["fledge_generation_tokens_total"],
        "tokens_usage": sum(one.n_tokens for one in outcomes),
        "tokens_recounted": recounted,
        "prompt_tokens_server": moved["fledge_prompt_tokens_total"],
        "prompt_tokens_usage": sum(one.usage["prompt_tokens"] for one in outcomes if one.usage),
        "tokens_per_second": sum(one.n_tokens for one in outcomes)
        / (max(one.ended for one in outcomes) - min(one.due for one in outcomes)),
    }


async def overhead(server: Served, model: str, n: int, rate: float, max_tokens: int) -> dict[str, Any]:
    """What HTTP adds to the time to first token of `n` requests at `rate` a second: theirs, over those of the same
    requests at the same times put into a bare engine on the same stub in this process. And the CPU time of it."""
    send, times = sender(server, 32, max_tokens), poisson_times(rate, n, seed=4)
    await send(0)
    before = server.figures()
    outcomes = await open_loop(send, times)
    after = server.figures()
    cpu = after["fledge_process_cpu_seconds_total"] - before["fledge_process_cpu_seconds_total"]
    theirs = [one.first for one in outcomes if one.answered]
    ours = bare_engine(model, times, max_tokens)
    added = {f"p{p}": round(1000 * (percentile(theirs, p) - percentile(ours, p)), 2) for p in (50, 99)}
    return {
        "answered": len(theirs),
        "http_ttft_ms": spread(theirs),
        "bare_ttft_ms": spread(ours),
        "added_ttft_ms": added,
        "cpu_microseconds_per_token": round(1e6 * cpu / sum(one.n_tokens for one in outcomes), 1),
    }


def bare_engine(model: str, times: list[float], max_tokens: int) -> list[float]:
    """Times to first token of requests that come at `times`, without a server or a process of its own."""
    from fledge.engine.load import load_engine
    from fledge.engine.request import Request, Sampling

    engine = load_engine(model)
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    requests = []
    for number in range(len(times)):
        ids = (engine.tokenizer.bos_id, *engine.tokenizer.encode(letters(number, 32)))
        requests.append(Request(str(number), tuple(i for i in ids if i is not None), sampling))
    due: dict[str, float] = {}
    first: dict[str, float] = {}
    began, todo = time.perf_counter(), list(zip(times, requests, strict=True))[::-1]
    while todo or engine.has_work:
        if not engine.has_work:
            time.sleep(max(0.0, began + todo[-1][0] - time.perf_counter()))
        while todo and began + todo[-1][0] <= time.perf_counter():
            at, request = todo.pop()
            due[request.id] = began + at
            engine.submit(request)
        for event in engine.step():
            if event.text:
                first.setdefault(event.request_id, time.perf_counter() - due[event.request_id])
    return list(first.values())
