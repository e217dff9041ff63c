"""Tokens per second of a mixture of experts: the compiled decoder beside torch.

A Mixtral shape of 107M parameters, 8 experts of which a token uses 2, with random weights, in the whole engine; greedy.
`kernels` is a step as one call, `panels` torch between the kernels' products (how mixtures were computed before the
decoder knew them), `torch` without any kernels (FLEDGE_NATIVE=0). Precisions: float32, int8, int4; tasks: answers at
once, prompt tokens, new tokens. One thread, CPU time, 7 rounds of all in turn, each in a process of its own.

Words choose cells: `python bench/experts.py float32 decode1`. Cells are kept in bench/results/experts.json.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from harness import RESULTS, clock, compare, keep, peer_process, summary

SHAPE = {
    "width": 512, "hidden": 1280, "layers": 6, "heads": 8, "kv_heads": 4, "context_tokens": 1024, "vocab_size": 8192,
    "experts": 8, "experts_per_token": 2,
}  # fmt: skip
TASKS = {"decode1": (1, 32, 32), "decode8": (8, 32, 16), "prefill256": (1, 256, 1)}
PRECISIONS = ("float32", "int8", "int4")
PEERS = ("kernels", "panels", "torch")
ROUNDS = 7


def engine_of(peer: str, precision: str, n_rows: int) -> Any:
    if peer == "torch":
        os.environ["FLEDGE_NATIVE"] = "0"
    from decode import quantised

    from fledge.engine.config import EngineConfig
    from fledge.engine.core import Engine
    from fledge.engine.runner import Runner
    from fledge.model.config import ShapeConfig
    from fledge.model.families import family
    from fledge.model.init import initialise
    from fledge.model.transformer import build
    from fledge.nn.native import library
    from fledge.text.tokenizer import characters

    library.build()
    model = initialise(build(family("mixtral").build(ShapeConfig("mixtral", **SHAPE)), "cpu"), 1)
    runner = Runner(quantised(model.eval(), precision), n_rows)
    if peer == "panels":
        runner.compiled = None
    else:
        assert (runner.compiled is not None) == (peer == "kernels"), runner.why_torch
    tokenizer = characters("".join(chr(0x4E00 + i) for i in range(SHAPE["vocab_size"] - 100)))
    return Engine(runner, tokenizer, EngineConfig(n_slots=n_rows, prefix_cache=False))


def measure(peer: str, precision: str, task: str) -> Callable[[int], Iterator[float]]:
    """A peer of the harness: tokens a second."""

    def figures(threads: int) -> Iterator[float]:
        from fledge.engine.request import Request, Sampling

        n_rows, n_prompt, n_new = TASKS[task]
        engine, numbers = engine_of(peer, precision, n_rows), itertools.count()
        sampling = Sampling(max_tokens=n_new, temperature=0.0, ignore_eos=True)

        def generate() -> None:
            prompts = [tuple(100 + (37 * i + 11 * row) % 7_000 for i in range(n_prompt)) for row in range(n_rows)]
            asked = [Request(f"{next(numbers)}", prompt, sampling) for prompt in prompts]
            assert all(len(done.token_ids) == n_new for done in engine.complete(asked))

        generate()
        yield 0.0
        while True:
            began = clock(threads)
            generate()
            yield (n_prompt if n_new == 1 else n_rows * n_new) / (clock(threads) - began)

    return figures


def main() -> None:
    if "--peer" in sys.argv:
        name, threads = sys.argv[sys.argv.index("--peer") + 1], int(sys.argv[sys.argv.index("--threads") + 1])
        peer_process({name: measure(*name.split("|"))}, name, threads)
        return
    words = set(sys.argv[1:])
    if words - {*PRECISIONS, *TASKS}:
        raise SystemExit(f"expected words of {[*PRECISIONS, *TASKS]}, got {words}")
    path = RESULTS / "experts.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else {}
    for precision, task in itertools.product(PRECISIONS, TASKS):
        if all(not words & set(group) or part in words for part, group in ((precision, PRECISIONS), (task, TASKS))):
            figures = compare(__file__, [f"{peer}|{precision}|{task}" for peer in PEERS], 1, ROUNDS)
            table = summary({name.split("|")[0]: values for name, values in figures.items()}, "torch")
            cells[f"{precision} {task}"] = table
            print(precision, task, json.dumps(table), flush=True)
            keep("experts", {"clock": "CPU time", "unit": "tokens/s", "rounds": ROUNDS, "cells": cells}, quiet=True)


if __name__ == "__main__":
    main()
