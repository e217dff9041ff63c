"""Seconds of a training step of nanoGPT's CPU configuration: fledge's loop beside transformers in a plain loop.

4 layers, 4 heads, width 128, block 64, batch 12, vocabulary 65, fp32, AdamW, clipping at 1, loss logged every step.
fledge runs its own loop whole: batches from shards, checks, log line, progress. The bar: at most 0.70 of transformers.

nanoGPT's configuration has no biases and the exact GELU, transformers' default GPT-2 has biases and the tanh GELU as
separate operations. The second pair computes one and the same function: biases and the exact GELU in both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import clock, run

STEPS = 60
VOCAB, BLOCK, ROWS = 65, 64, 12


def random_tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCAB, 1_000_000)


def transformers_loop(threads: int, activation: str = "gelu_new") -> Iterator[float]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=BLOCK, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, activation_function=activation,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    data = torch.from_numpy(random_tokens())
    log = open(tempfile.mkstemp()[1], "w")  # noqa: SIM115 (lives as long as the process)

    def steps(n: int) -> None:
        for _ in range(n):
            starts = torch.randint(len(data) - BLOCK, (ROWS,))
            rows = torch.stack([data[s : s + BLOCK + 1] for s in starts])
            inputs, targets = rows[:, :-1], rows[:, 1:].contiguous()
            loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            log.write(f"{loss.item()} {norm.item()}\n")

    steps(20)
    yield 0.0
    while True:
        began = clock(threads)
        steps(STEPS)
        yield (clock(threads) - began) / STEPS


def fledge_loop(threads: int, bias: bool = False) -> Iterator[float]:
    from fledge import device as devices
    from fledge.data.batches import TextBatches
    from fledge.data.shards import shard_of
    from fledge.log import Progress, RunLog
    from fledge.model.config import ShapeConfig
    from fledge.model.families import family
    from fledge.model.init import initialise
    from fledge.model.transformer import build
    from fledge.recipes.language import LanguageRecipe
    from fledge.train.checkpointing import State
    from fledge.train.config import TrainConfig
    from fledge.train.loop import Loop, Run
    from fledge.train.signals import StopRequest

    shape = ShapeConfig(
        "gpt2", width=128, layers=4, heads=4, context_tokens=BLOCK, vocab_size=VOCAB, bias=bias, activation="gelu"
    )
    model = initialise(build(family("gpt2").build(shape), "cpu"), 1)
    source = TextBatches(shard_of([random_tokens().tolist()]), BLOCK, ROWS, 1)
    recipe = LanguageRecipe(model, None, source, [], "")  # type: ignore[arg-type]
    config = TrainConfig(steps=10**9, rows=ROWS, learning_rate=1e-3, beta2=0.99, clip_norm=1.0, save_every_steps=0)
    folder = Path(tempfile.mkdtemp())
    where = devices.pick("cpu", threads=threads)
    loop = Loop(Run(folder, config, config, where, recipe, RunLog(folder / "log.jsonl")), State(), StopRequest())
    loop.announce()
    progress = Progress("step", 10**9, every_seconds=1e9)

    def steps(n: int) -> None:
        for _ in range(n):
            figures = loop.one_step()
            assert figures is not None
            loop.record(figures, progress)

    steps(20)
    yield 0.0
    while True:
        began = clock(threads)
        steps(STEPS)
        yield (clock(threads) - began) / STEPS


if __name__ == "__main__":
    peers = {
        "transformers": transformers_loop,
        "fledge": fledge_loop,
        "transformers, exact GELU": lambda threads: transformers_loop(threads, "gelu"),
        "fledge, biases": lambda threads: fledge_loop(threads, bias=True),
    }
    same_function = (("fledge, biases", "transformers, exact GELU"),)
    run(__file__, peers, "transformers", "train_step", "seconds a step", same_function)
