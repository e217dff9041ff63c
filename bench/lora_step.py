"""Seconds and peak memory of a step of LoRA beside GPT-2 124M, 4 rows of 256: fledge and peft with transformers.

Rank 8 on every linear map of the blocks (PEFT's c_attn, c_proj, c_fc), fp32, AdamW, clipping at 1, dropout 0, loss
logged every step. fledge runs its own loop whole: batches from shards, checks, log line. The trained numbers must be as
many. `python bench/lora_step.py [THREADS …]`, one thread and two by default. The bars: fledge at least as fast, its
peak memory at most peft's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from forward import resident
from harness import clock, compare, keep, peer_process, ratio, summary

VOCAB, BLOCK, ROWS, RANK, ROUNDS = 50257, 256, 4, 8, 7
PEERS = ("peft", "fledge")


def random_tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCAB, 100_000)


def peft_step() -> tuple[Callable[[], None], int]:
    """(one step, numbers that are trained)."""
    import peft
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    config = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
    )
    tuned = peft.get_peft_model(model, config).train()
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    data = torch.from_numpy(random_tokens())
    log = open(tempfile.mkstemp()[1], "w")  # noqa: SIM115 (lives as long as the process)

    def step() -> None:
        starts = torch.randint(len(data) - BLOCK, (ROWS,))
        rows = torch.stack([data[s : s + BLOCK + 1] for s in starts])
        inputs, targets = rows[:, :-1], rows[:, 1:].contiguous()
        loss = tuned(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.write(f"{loss.item()} {norm.item()}\n")

    return step, sum(parameter.numel() for parameter in trained)


def fledge_step(threads: int) -> tuple[Callable[[], None], int]:
    """(one step, numbers that are trained)."""
    from dataclasses import replace

    from fledge import device as devices
    from fledge.data.batches import TextBatches
    from fledge.data.shards import shard_of
    from fledge.log import Progress, RunLog
    from fledge.model.families import family
    from fledge.model.init import initialise
    from fledge.model.transformer import build
    from fledge.recipes.language import LanguageRecipe
    from fledge.train.checkpointing import State
    from fledge.train.config import TrainConfig
    from fledge.train.loop import Loop, Run
    from fledge.train.signals import StopRequest
    from fledge.tune.attach import trained_parameters, tune
    from fledge.tune.config import TuneConfig

    where = devices.pick("cpu", threads=threads)
    shape = replace(family("gpt2").presets["gpt2"], dropout=0.0)
    model = initialise(build(family("gpt2").new_config(shape), "cpu"), 1)
    tune(model, TuneConfig("lora", RANK, 2 * RANK, targets=("c_attn", "c_proj", "c_fc")))
    source = TextBatches(shard_of([random_tokens().tolist()]), BLOCK, ROWS, 1)
    recipe = LanguageRecipe(model, None, source, [], "")  # type: ignore[arg-type]
    config = TrainConfig(
        steps=10**9, rows=ROWS, learning_rate=1e-4, weight_decay=0.0, clip_norm=1.0, save_every_steps=0
    )
    folder = Path(tempfile.mkdtemp())
    loop = Loop(Run(folder, config, config, where, recipe, RunLog(folder / "log.jsonl")), State(), StopRequest())
    loop.announce()
    progress = Progress("step", 10**9, every_seconds=1e9)

    def step() -> None:
        figures = loop.one_step()
        assert figures is not None
        loop.record(figures, progress)

    return step, trained_parameters(model)


def made(peer: str, threads: int) -> tuple[Callable[[], None], int]:
    return fledge_step(threads) if peer == "fledge" else peft_step()


def timed(peer: str) -> Callable[[int], Iterator[float]]:
    def measure(threads: int) -> Iterator[float]:
        step, _ = made(peer, threads)
        step()
        step()
        yield 0.0
        while True:
            began = clock(threads)
            step()
            yield clock(threads) - began

    return measure


def print_peak(peer: str) -> None:
    """The child that measures memory: bytes that model and two steps add to the process, imports not counted."""
    import peft  # noqa: F401
    import torch
    import transformers

    torch.set_num_threads(1)
    _ = transformers.GPT2LMHeadModel
    warm = torch.randn(64, 64, requires_grad=True)
    (warm @ warm).sum().backward()
    before = resident("VmRSS")
    step, trained = made(peer, 1)
    step()
    step()
    print(resident("VmHWM") - before, trained)


def peak(peer: str) -> tuple[int, int]:
    """(bytes, numbers that are trained): the median of three processes."""
    line = [sys.executable, __file__, "--peak", peer]
    runs = [subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-2:] for _ in range(3)]
    return int(statistics.median(int(size) for size, _ in runs)), int(runs[0][1])


def main(threads: list[int]) -> None:
    peaks = {peer: peak(peer) for peer in PEERS}
    assert peaks["peft"][1] == peaks["fledge"][1], peaks
    memory = {peer: size for peer, (size, _) in peaks.items()}
    results = {"peak_bytes": {**memory, "ratio": memory["fledge"] / memory["peft"]}, "trained": peaks["peft"][1]}
    for n in threads:
        figures = compare(__file__, list(PEERS), n, ROUNDS)
        results[f"{n} thread{'s' if n > 1 else ''}"] = {
            **summary(figures, "peft"),
            "peft / fledge": ratio(figures, "peft", "fledge"),
        }
    keep("lora_step", {"unit": "seconds a step", "rounds": ROUNDS, "results": results})


if __name__ == "__main__":
    words = sys.argv
    if "--peer" in words:
        name = words[words.index("--peer") + 1]
        peer_process({name: timed(name)}, name, int(words[words.index("--threads") + 1]))
    elif "--peak" in words:
        print_peak(words[words.index("--peak") + 1])
    else:
        main([int(word) for word in words[1:]] or [1, 2])
