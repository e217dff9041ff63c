"""How `fledge serve` bears load, by a client of its own (bench/load.py has the formulas, bench/scenes.py what is done).

    python bench/serve.py                     all parts, in full
    python bench/serve.py --short sweep truth only these, with fewer requests

sweep and poisson: a LLaMA shape of 15M parameters with random weights (bench/decode.py), prompts of 64 tokens, answers
of 32, greedy: closed loops of 1 to 32 callers, then open loops at 50, 75, 90 and 120 % of the best throughput of the
sweep, with an objective of 1 s to the first token (or of what the sweep says a full server takes, if that is more) and
twice a full server's time per token. startup: from the process's start to the first token of a 125M shape in INT8.
The others are of an engine without a model, so that what is measured is the server: 5 ms a pass; overload has 20 ms a
pass and 4 slots. Results of a part replace those before it in bench/results/serve.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import RESULTS, keep, processor

from bench import scenes
from bench.floor import floor
from bench.load import ask, percentile
from bench.served import served

STUB = "stub:delay_ms=5"
TEXT = "stub:delay_ms=100&text=" + "now%20is%20the%20time%20" * 6
PROMPT_TOKENS, ANSWER_TOKENS = 64, 32
CALLERS = [1, 2, 4, 8, 16, 32]
LOADS = (0.5, 0.75, 0.9, 1.2)


def model_folder(shape: str, precision: str) -> str:
    """A random model of bench/decode.py with a tokenizer of as many characters as it has tokens."""
    import torch
    from decode import quantised, transformers_model

    from fledge.model.folder import load_model, save_model
    from fledge.text.tokenizer import characters

    folder, theirs = tempfile.mkdtemp(), tempfile.mkdtemp()
    transformers_model(shape).save_pretrained(theirs)
    with torch.no_grad():
        model = quantised(load_model(theirs), precision)
    letters = "".join(chr(0x4E00 + i) for i in range(20_000)) + "".join(map(chr, range(0xAC00, 0xD6F8)))
    save_model(model, folder, characters(letters))
    return folder


def prompts(n: int) -> list[Any]:
    """Token ids, no two prompts alike."""
    return [[100 + (7 * i + 131 * row) % 20_000 for i in range(PROMPT_TOKENS)] for row in range(n)]


def sweep(short: bool) -> dict[str, Any]:
    with served(model_folder("15m", "float32")) as server:
        send = scenes.sender(server, PROMPT_TOKENS, ANSWER_TOKENS, prompts=prompts(2000))
        found = asyncio.run(scenes.sweep(send, CALLERS, lambda c: max(4 if short else 32, (2 if short else 8) * c)))
    return {"callers": found, "batching_gain": found["8"]["tokens_per_second"] / found["1"]["tokens_per_second"]}


def poisson(short: bool) -> dict[str, Any]:
    full = json.loads((RESULTS / "serve.json").read_text())["parts"]["sweep"]["callers"]["8"]
    peak = full["tokens_per_second"] / ANSWER_TOKENS
    first, per_token = max(1.0, 2 * full["ttft_ms"]["p99"] / 1000), 2 * full["tpot_ms"]["p50"] / 1000
    found: dict[str, Any] = {"objective": {"first_seconds": round(first, 3), "per_token_seconds": round(per_token, 4)}}
    with served(model_folder("15m", "float32"), f"queue_seconds={first:g}") as server:
        send = scenes.sender(server, PROMPT_TOKENS, ANSWER_TOKENS, prompts=prompts(2000))
        asyncio.run(scenes.sweep(send, [8], lambda c: 16))  # it knows how long answers take
        for load in LOADS:
            n = 60 if short else 1000
            found[f"{load:g}"] = asyncio.run(scenes.poisson(send, load * peak, n, first, per_token))
            found[f"{load:g}"]["throughput_of_peak"] = found[f"{load:g}"]["tokens_per_second"] / peak / ANSWER_TOKENS
    return found


def overhead(short: bool) -> dict[str, Any]:
    with served(STUB) as server:
        found = asyncio.run(scenes.overhead(server, STUB, 200 if short else 1000, 20.0, 24))
    return found | {"one_token_ttft_ms": floor(40 if short else 60)}


def overload(short: bool) -> dict[str, Any]:
    with served("stub:delay_ms=20", "engine.n_slots=4", "queue_seconds=1") as server:
        return asyncio.run(scenes.overload(server, 25, 4, 10.0 if short else 60.0, 1.0))


def fairness(short: bool) -> dict[str, Any]:
    found, n = {}, 60 if short else 200
    with served(f"{STUB}&token_ms=0.2") as server:
        found["two_callers"] = asyncio.run(scenes.fairness(server, n, 5.0, 24, 48))
        found["one_caller"] = asyncio.run(scenes.fairness(server, n // 3, 5.0, 24, 48, other="127.0.0.1"))
    for chunk in (32, 512):
        with served(f"{STUB}&token_ms=0.2", f"engine.prefill_chunk={chunk}") as server:
            found[f"chunk_{chunk}"] = asyncio.run(scenes.long_prompts(server, 4, 300, 400, 8))
    return found


def truth(short: bool) -> dict[str, Any]:
    runs = []
    for _ in range(3):
        with served(TEXT) as server:
            runs.append(asyncio.run(scenes.truth(server, 12, 4, 80)))
    speeds = [run["tokens_per_second"] for run in runs]
    return {"runs": runs, "spread": max(speeds) / min(speeds) - 1}


def startup(short: bool) -> dict[str, Any]:
    folder = model_folder("125m", "int8")
    figures: dict[str, list[float]] = {"ready": [], "first_token": []}
    for _ in range(2 if short else 5):
        with served(folder) as server:
            figures["ready"].append(time.perf_counter() - server.started)
            body = {"prompt": prompts(1)[0], "max_tokens": 2, "temperature": 0, "ignore_eos": True}
            one = asyncio.run(ask(server.url, body))
            figures["first_token"].append(one.text_times[0] - server.started)
    return {
        "ready_seconds": percentile(figures["ready"], 50),
        "to_first_token_seconds": percentile(figures["first_token"], 50),
        "runs": figures,
    }


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "sweep": sweep, "poisson": poisson, "overhead": overhead, "overload": overload, "fairness": fairness,
    "truth": truth, "startup": startup,
}  # fmt: skip


def main() -> None:
    words = sys.argv[1:]
    short, asked = "--short" in words, [word for word in words if word != "--short"]
    if unknown := set(asked) - set(PARTS):
        raise SystemExit(f"expected --short and parts of {' '.join(PARTS)}, got {' '.join(sorted(unknown))}")
    path = RESULTS / "serve.json"
    before = json.loads(path.read_text()) if path.exists() else {"parts": {}, "short": []}
    parts, few, processors = before["parts"], set(before["short"]), before.get("processors", {})
    for name in asked or PARTS:
        parts[name] = PARTS[name](short)
        processors[name] = processor()
        few = few | {name} if short else few - {name}
        print(name, json.dumps(parts[name]), flush=True)
        cores = sorted(os.sched_getaffinity(0))
        keep("serve", {"cores_used": cores, "short": sorted(few), "processors": processors, "parts": parts}, quiet=True)


if __name__ == "__main__":
    main()
