"""Seconds and peak memory of a forward pass, and of forward and backward: fledge beside transformers, fp32, batch 1.

GPT-2 124M, a LLaMA shape of 160M, BERT-base and T5-small (source and target of the same length), at 128, 512 and 2048
tokens with position tables enlarged to the length, eager against eager and compiled against compiled, on one thread and
two. Both peers load one config.json with dropout 0. Forward: logits of every token, no gradient, no cache. Forward and
backward: the loss of every token, then gradients of all parameters. The bars: transformers' time over fledge's at least
0.97 in every cell and 1.05 in the geometric mean; peak memory at most transformers'.

Words choose a part: `python bench/forward.py gpt2 512 backward eager 1`. Each cell is kept in
bench/results/forward.json as it ends, with the digest of the code that computed it; without --fresh, a cell of today's
code is not measured again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import RESULTS, clock, compare, keep, peer_process, ratio

MODELS = ("gpt2", "llama", "bert", "t5")
LENGTHS = ("128", "512", "2048")
PASSES = ("forward", "backward")
MODES = ("eager", "compiled")
THREADS = ("1", "2")
PEERS = ("fledge", "transformers")
AXES = (MODELS, LENGTHS, PASSES, MODES, THREADS)
ROUNDS = 7
SECONDS = 0.6  # a figure is the mean of as many passes as fill this

PARTS = {
    "gpt2": ("gpt2", {"preset": "gpt2"}),
    "llama": ("llama", {"width": 768, "layers": 12, "heads": 12, "hidden": 3072, "vocab_size": 32000}),
    "bert": ("bert", {"preset": "bert-base-uncased"}),
    "t5": ("t5", {"preset": "t5-small"}),
}
CLASSES = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}


def model_config(name: str, length: int) -> Any:
    """fledge's config of a model whose positions reach `length`."""
    from dataclasses import replace

    from fledge.model.config import ShapeConfig
    from fledge.model.families import family

    known, fields = PARTS[name]
    preset = fields.get("preset")
    shape = family(known).presets[preset] if preset else ShapeConfig(known, **fields)  # type: ignore[arg-type]
    return family(known).new_config(replace(shape, context_tokens=length, dropout=0.0))


def token_ids(length: int, vocabulary: int) -> Any:
    import torch

    return torch.randint(1000, vocabulary, (1, length), generator=torch.Generator().manual_seed(1))


def fledge_pass(name: str, length: int, backward: bool, compiled: bool) -> Callable[[], None]:
    """One pass of fledge."""
    import torch

    from fledge import device
    from fledge.batch import OneDocument, one_document
    from fledge.model.init import initialise
    from fledge.model.transformer import build

    device.pick("cpu", threads=torch.get_num_threads())
    config = model_config(name, length)
    model = initialise(build(config, "cpu"), 1)
    ids = token_ids(length, config.vocab_size)
    tokens, layout = one_document(ids), OneDocument()
    source = (tokens, layout) if config.encoder is not None and config.decoder is not None else None
    weight = torch.ones(1, length)
    call = torch.compile(model.loss_sum if backward else model) if compiled else model.loss_sum if backward else model
    if not backward:
        model.eval()

        def forward() -> None:
            with torch.no_grad():
                call(tokens, layout, source=source)

        return forward

    def both() -> None:
        loss = call(tokens, layout, ids, weight, source=source) / length
        loss.backward()
        model.zero_grad(set_to_none=True)

    return both


def transformers_pass(name: str, length: int, backward: bool, compiled: bool) -> Callable[[], None]:
    """One pass of transformers' model of the same config.json, with its own loss."""
    import torch
    import transformers

    from fledge.model.families import family

    config = model_config(name, length)
    known = family(config.family)
    raw = {"model_type": known.model_type, **known.write(config), "use_cache": False, "decoder_start_token_id": 0}
    raw.update({key: 0.0 for key in DROPOUTS})
    read = transformers.AutoConfig.for_model(**raw)
    torch.manual_seed(1)
    model = getattr(transformers, CLASSES.get(name, "AutoModelForCausalLM")).from_config(read)
    ids = token_ids(length, config.vocab_size)
    words = {"input_ids": ids, "decoder_input_ids": ids} if name == "t5" else {"input_ids": ids}
    call = torch.compile(model) if compiled else model
    if not backward:
        model.eval()

        def forward() -> None:
            with torch.no_grad():
                call(**words, use_cache=False) if name != "bert" else call(**words)

        return forward

    words = {"input_ids": ids, "labels": ids}
    model.train()

    def both() -> None:
        loss = call(**words).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    return both


DROPOUTS = (
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "dropout_rate",
)  # fmt: skip


def one_pass(peer: str, cell: tuple[str, ...]) -> Callable[[], None]:
    name, length, way, mode = cell[:4]
    make = fledge_pass if peer == "fledge" else transformers_pass
    return make(name, int(length), way == "backward", mode == "compiled")


def timed(peer: str, cell: tuple[str, ...]) -> Callable[[int], Iterator[float]]:
    """A peer of the harness: seconds of a pass."""

    def measure(threads: int) -> Iterator[float]:
        step = one_pass(peer, cell)
        step()
        began = clock(threads)
        step()
        count = max(1, round(SECONDS / (clock(threads) - began)))
        yield 0.0
        while True:
            began = clock(threads)
            for _ in range(count):
                step()
            yield (clock(threads) - began) / count

    return measure


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def print_peak(peer: str, cell: tuple[str, ...]) -> None:
    """The child that measures memory: bytes that model and passes add to the process at most, imports not counted."""
    import torch
    import transformers

    torch.set_num_threads(int(cell[4]))
    for name in ("AutoModelForCausalLM", CLASSES.get(cell[0], "AutoModelForCausalLM")):
        getattr(transformers, name)
    warm = torch.randn(64, 64, requires_grad=True)
    (warm @ warm).sum().backward()
    before = resident("VmRSS")
    step = one_pass(peer, cell)
    for _ in range(2):
        step()
    print(resident("VmHWM") - before)


def peak(peer: str, cell: tuple[str, ...]) -> int:
    """The median of three processes: where freed blocks lie differs by chance, and with it what a large one needs."""
    line = [sys.executable, __file__, "--peak", peer, *cell]
    runs = (subprocess.run(line, check=True, capture_output=True, text=True) for _ in range(3))
    return statistics.median(int(run.stdout.split()[-1]) for run in runs)


def measured(cell: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """One cell: both peers' seconds, the ratio transformers / fledge by rounds, peak bytes (eager, one thread)."""
    names = [" ".join((peer, *cell)) for peer in PEERS]
    figures = compare(__file__, names, int(cell[4]), rounds)
    row: dict[str, Any] = {
        f"{peer}_seconds": statistics.median(figures[n]) for peer, n in zip(PEERS, names, strict=True)
    }
    row.update(ratio(figures, names[1], names[0]), rounds=rounds)
    if cell[3:] == ("eager", "1"):
        row.update({f"{peer}_peak_bytes": peak(peer, cell) for peer in PEERS})
    return row


def in_words(row: dict[str, Any]) -> str:
    text = f"{row['ratio']:.3f} ({row['ratio_low']:.3f}-{row['ratio_high']:.3f})"
    if "fledge_peak_bytes" in row:
        text += f", memory {row['fledge_peak_bytes'] / row['transformers_peak_bytes']:.2f}"
    return text


def code_digest() -> str:
    """Twelve hex digits over what computes: the package's layers, the model of them, and this file."""
    root = Path(__file__).resolve().parent.parent
    model = [root / f"fledge/model/{name}.py" for name in ("transformer", "config", "init")]
    files = [*(root / "fledge/nn").glob("*.py"), *model, Path(__file__)]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def means(cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Geometric means of the ratios: of all cells, and by mode and threads."""

    def mean(rows: list[dict[str, Any]]) -> float:
        return math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows))

    groups = {"all": list(cells.values())}
    for mode, threads in itertools.product(MODES, THREADS):
        groups[f"{mode}, {threads} threads"] = [r for key, r in cells.items() if key.endswith(f"{mode} {threads}")]
    return {name: round(mean(rows), 4) for name, rows in groups.items() if rows}


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--peer"]:
        peer, *cell = words[1].split()
        peer_process({words[1]: timed(peer, tuple(cell))}, words[1], int(cell[4]))
        return
    if words[:1] == ["--peak"]:
        print_peak(words[1], tuple(words[2:]))
        return
    code, path = code_digest(), RESULTS / "forward.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else {}
    chosen = [[value for value in axis if value in words] or axis for axis in AXES]
    for cell in itertools.product(*chosen):
        key = " ".join(cell)
        if cells.get(key, {}).get("code") != code or "--fresh" in words:
            cells[key] = {"code": code, **measured(cell, ROUNDS)}
            print(f"{key}: {in_words(cells[key])}", file=sys.stderr)
        keep("forward", {"geometric_means": means(cells), "cells": cells}, quiet=True)
    print(json.dumps(means(cells)))


if __name__ == "__main__":
    main()
