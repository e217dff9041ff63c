"""Seconds of training lost to one checkpoint, written here and now or behind the training (`train.checkpoint_async`).

Two GPT-2 shapes with AdamW in float32: nanoGPT's 10M for Shakespeare's characters and the published 124M. Each round
times some steps alone, then steps from the call of a checkpoint until it has landed, in the two ways in turn:

    stood still   seconds in which no step was done
    landed        seconds from the call until the checkpoint was on the disk
    lost          seconds from the call until it had landed, less what the steps done meanwhile take alone
    CPU           the same in CPU seconds of all threads: what is lost where one core does both, on a machine at rest

    python bench/checkpoint.py [SHAPE ...] [--threads 1] [--rounds 3] [--keep]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import keep

# layers, heads, width, context, vocabulary, rows of a step
SHAPES = {"10M": (6, 6, 384, 256, 65, 4), "124M": (12, 12, 768, 1024, 50257, 1)}
ROW_TOKENS, STEPS_ALONE = 128, 3


def new_loop(folder: Path, name: str, threads: int) -> Any:
    from fledge import device as devices
    from fledge.data.batches import TextBatches
    from fledge.data.shards import shard_of
    from fledge.log import RunLog
    from fledge.model.config import ShapeConfig
    from fledge.model.families import family
    from fledge.model.init import initialise
    from fledge.model.transformer import build
    from fledge.recipes.language import LanguageRecipe
    from fledge.text.tokenizer import byte_level
    from fledge.train.checkpointing import State
    from fledge.train.config import TrainConfig
    from fledge.train.loop import Loop, Run
    from fledge.train.signals import StopRequest

    layers, heads, width, context, vocab, rows = SHAPES[name]
    shape = ShapeConfig("gpt2", width=width, layers=layers, heads=heads, context_tokens=context, vocab_size=vocab)
    where = devices.pick("cpu", threads=threads)
    model = initialise(build(family("gpt2").build(shape), "cpu"), 1)
    tokens = np.random.default_rng(1).integers(0, vocab, 100_000).tolist()
    source = TextBatches(shard_of([tokens]), ROW_TOKENS, rows, 1)
    recipe = LanguageRecipe(model, byte_level(), source, [], "")
    config = TrainConfig(steps=10**9, rows=rows, save_every_steps=0, keep_last=1)
    run = Run(folder, config, config, where, recipe, RunLog(folder / "log.jsonl"))
    return Loop(run, State(), StopRequest())


def clocks() -> np.ndarray:
    """Wall seconds, and CPU seconds of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def step(loop: Any) -> np.ndarray:
    began = clocks()
    loop.one_step()
    return clocks() - began


def one_checkpoint(loop: Any, behind: bool) -> dict[str, float]:
    """Seconds lost to a checkpoint of now; training goes on until it has landed, and for a step at least."""
    alone = np.median([step(loop) for _ in range(STEPS_ALONE)], axis=0)
    saver, n_steps = loop.saver, 0
    saver.config = replace(saver.config, checkpoint_async=behind)
    began = clocks()
    loop.hand_over(saver.save_on_the_way)
    stood_still = landed = clocks() - began
    while True:
        step(loop)
        n_steps += 1
        if saver.flight is None or not saver.flight.is_alive():
            break
    lost = clocks() - began - n_steps * alone
    if saver.flight is not None:
        landed = np.array([saver.flight.held_seconds + saver.flight.seconds, np.nan])
    saver.wait()
    rows = {"a step alone": alone, "stood still": stood_still, "landed": landed, "lost": lost}
    wall = {name: float(both[0]) for name, both in rows.items()}
    return wall | {f"{name}, CPU": float(rows[name][1]) for name in ("a step alone", "stood still", "lost")}


def measure(name: str, threads: int, rounds: int) -> dict[str, Any]:
    from fledge.train.snapshot import snapshot_bytes

    Path("out").mkdir(exist_ok=True)  # the working tree's disk: a temporary folder may be memory
    folder = Path(tempfile.mkdtemp(dir="out", prefix="bench-checkpoint-"))
    try:
        loop = new_loop(folder, name, threads)
        step(loop)
        n_bytes = snapshot_bytes(loop.model, loop.optimizer.state())
        found: dict[str, list[dict[str, float]]] = {"here and now": [], "behind the training": []}
        for way in [*found] * rounds:
            found[way].append(one_checkpoint(loop, way == "behind the training"))
    finally:
        shutil.rmtree(folder)
    table = {
        way: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for way, rows in found.items()
    }  # fmt: skip
    return {
        "megabytes": n_bytes / 1e6,
        **table,
        "lost, CPU, in each round": {w: [r["lost, CPU"] for r in found[w]] for w in found},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("shape", nargs="*", default=list(SHAPES), help=" or ".join(SHAPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write bench/results/checkpoint.json")
    given = parser.parse_args()
    tables = {name: measure(name, given.threads, given.rounds) for name in given.shape}
    what = {"unit": "seconds", "threads": given.threads, "rounds": given.rounds, "results": tables}
    if given.keep:
        keep("checkpoint", what)
    else:
        import json

        print(json.dumps(what, indent=1))
