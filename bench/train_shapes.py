"""Seconds of a training step of known shapes: fledge's whole loop beside plain torch, transformers and LitGPT, fp32.

nanogpt: 6 layers, width 384, 12 rows of 256, vocabulary 65; gpt2: GPT-2 124M, 4 rows of 256; bert: BERT-base, 4 rows of
256 with 15 % of the tokens masked; t5: T5-small, 4 rows of 256 read and 64 written. AdamW, clipping at 1, dropout 0.
Peers: `plain`, a loop of nanoGPT's kind over a small model written here; `transformers` in a plain loop; `trainer`,
transformers' Trainer; `litgpt`, LitGPT's GPT in a plain loop. The bar: fledge at least as fast as the best of them,
eager against eager and compiled against compiled; 80 % of the measured matmul peak for nanogpt.

Peers that are not installed are left out and named: `pip install accelerate lightning`, then `pip install litgpt
--no-deps`.
Words choose a part: `python bench/train_shapes.py nanogpt eager 1`. Cells are kept in bench/results/train_shapes.json.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import RESULTS, clock, compare, keep, peer_process, ratio

SHAPES = {"nanogpt": (12, 256, 65), "gpt2": (4, 256, 50257), "bert": (4, 256, 30522), "t5": (4, 256, 32128)}
TARGET_TOKENS = 64  # of t5
PEERS = ("fledge", "plain", "transformers", "trainer", "litgpt")
MODES = ("eager", "compiled")
THREADS = ("1", "2")
ROUNDS = 7
SECONDS = 1.0  # a figure is the mean of as many steps as fill this
NEEDS = {"trainer": ("accelerate",), "litgpt": ("litgpt", "lightning")}


def left_out(peer: str, shape: str) -> str:
    """Why a peer has no figure for a shape; empty: it has one."""
    missing = [name for name in NEEDS.get(peer, ()) if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    return "decoders only" if peer in ("plain", "litgpt") and shape in ("bert", "t5") else ""


def batch_ids(shape: str, index: int) -> Any:
    """int64 [B, T + 1] of a batch."""
    import torch

    rows, tokens, vocabulary = SHAPES[shape]
    return torch.randint(0, vocabulary, (rows, tokens + 1), generator=torch.Generator().manual_seed(index))


def labelled(shape: str, index: int) -> dict[str, Any]:
    """A batch as transformers takes it."""
    import torch

    ids = batch_ids(shape, index)
    if shape == "bert":
        ids = ids[:, :-1]
        chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(index)) < 0.15
        return {"input_ids": ids.masked_fill(chosen, 103), "labels": ids.masked_fill(~chosen, -100)}
    if shape == "t5":
        return {"input_ids": ids[:, :-1], "labels": ids[:, :TARGET_TOKENS].clone()}
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].clone(), "shift_labels": ids[:, 1:].clone()}


def transformers_model(shape: str) -> Any:
    import transformers as t

    off = {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0}
    if shape == "nanogpt":
        small = t.GPT2Config(vocab_size=65, n_positions=256, n_embd=384, n_layer=6, n_head=6, **off)
        return t.GPT2LMHeadModel(small).train()
    if shape == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(**off)).train()
    if shape == "bert":
        config = t.BertConfig(hidden_dropout_prob=0, attention_probs_dropout_prob=0)
        return t.BertForMaskedLM(config).train()
    config = t.T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, dropout_rate=0,
                        decoder_start_token_id=0)  # fmt: skip
    return t.T5ForConditionalGeneration(config).train()


def plain_model(shape: str) -> Any:
    """A GPT of nanoGPT's kind: pre-norm, joined q k v, exact GELU, tied output, all logits at once."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    width, layers, heads, vocabulary = (384, 6, 6, 65) if shape == "nanogpt" else (768, 12, 12, 50257)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Any) -> Any:
            q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, -1))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
            self.layers, self.norm = nn.ModuleList(Layer() for _ in range(layers)), nn.LayerNorm(width, bias=False)
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, ids: Any, targets: Any) -> Any:
            x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
            for layer in self.layers:
                x = layer(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return Plain().train()


def litgpt_model(shape: str) -> Any:
    import torch.nn.functional as F
    from litgpt.config import Config
    from litgpt.model import GPT
    from torch import nn

    sizes = {"n_embd": 384, "n_layer": 6, "n_head": 6, "padded_vocab_size": 65} if shape == "nanogpt" else {
        "n_embd": 768, "n_layer": 12, "n_head": 12, "padded_vocab_size": 50257}  # fmt: skip
    inner = GPT(Config(block_size=256, rotary_percentage=1.0, parallel_residual=False, bias=False, **sizes))

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: Any, targets: Any) -> Any:
            return F.cross_entropy(self.inner(ids).flatten(0, 1), targets.flatten())

    return Wrapped().train()


def plain_loop(peer: str, shape: str, compiled: bool) -> Callable[[int], None]:
    """Steps of a loop as a careful user writes it: batch, loss, backward, clip, fused AdamW, a log line."""
    import torch

    torch.manual_seed(1)
    make = {"plain": plain_model, "litgpt": litgpt_model, "transformers": transformers_model}[peer]
    model = make(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    call = torch.compile(model) if compiled else model
    log = open(tempfile.mkstemp()[1], "w")  # noqa: SIM115 (lives as long as the process)
    drawn = itertools.count()

    def steps(n: int) -> None:
        for _ in range(n):
            if peer == "transformers":
                loss = call(**labelled(shape, next(drawn))).loss
            else:
                ids = batch_ids(shape, next(drawn))
                loss = call(ids[:, :-1], ids[:, 1:].contiguous())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            log.write(f"{loss.item()} {norm.item()}\n")

    return steps


def trainer_loop(shape: str, compiled: bool) -> Callable[[int], None]:
    """Steps as transformers' Trainer takes them: its loader, training_step, clipping, optimizer and schedule; the
    bookkeeping of its train() is left out, which is to its advantage."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1 << 16

        def __getitem__(self, index: int) -> dict[str, Any]:
            row = labelled(shape, index)
            return {name: values[0] for name, values in row.items() if name != "shift_labels" or shape != "bert"}

    arguments = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=SHAPES[shape][0], max_steps=1 << 30, learning_rate=1e-4,
        max_grad_norm=1.0, weight_decay=0.1, adam_beta2=0.95, optim="adamw_torch_fused", logging_steps=1 << 30,
        save_strategy="no", report_to=[], use_cpu=True, torch_compile=compiled, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(transformers_model(shape), arguments, train_dataset=Rows())
    trainer.create_optimizer_and_scheduler(1 << 30)
    batches, model = iter(trainer.get_train_dataloader()), trainer._wrap_model(trainer.model)
    trainer.model_wrapped, trainer.current_gradient_accumulation_steps = model, 1
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)

    def steps(n: int) -> None:
        for _ in range(n):
            trainer.training_step(model, next(batches))
            trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
            model.zero_grad()

    return steps


def fledge_recipe(shape: str) -> Any:
    """The recipe that `fledge pretrain` would train, on batches of random tokens."""
    import torch

    from fledge.batch import Batch, OneDocument, one_document
    from fledge.model.config import ShapeConfig
    from fledge.model.families import family
    from fledge.model.init import initialise
    from fledge.model.transformer import build
    from fledge.recipes.language import LanguageRecipe
    from fledge.recipes.masked import MaskedRecipe

    small = ShapeConfig("gpt2", width=384, layers=6, heads=6, context_tokens=256, vocab_size=65, bias=False,
                        activation="gelu")  # fmt: skip
    presets = {"gpt2": ("gpt2", "gpt2"), "bert": ("bert", "bert-base-uncased"), "t5": ("t5", "t5-small")}
    known = small if shape == "nanogpt" else family(presets[shape][0]).presets[presets[shape][1]]
    model = initialise(build(family(known.family).new_config(replace(known, dropout=0.0)), "cpu"), 1)
    whole = OneDocument()

    class Source:
        def batch(self, index: int) -> Batch:
            made = labelled(shape, index)
            read, labels = one_document(made["input_ids"]), made["labels"]
            weight = (labels >= 0).float()
            if shape != "t5":
                return Batch(read, labels.clamp_min(0), weight, whole)
            written = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
            return Batch(one_document(written), labels, weight, whole, source=(read, whole))

    return (MaskedRecipe if shape == "bert" else LanguageRecipe)(model, None, Source(), [], "")  # type: ignore[arg-type]


def fledge_loop(shape: str, compiled: bool, threads: int) -> Callable[[int], None]:
    """Steps of fledge's own loop: batch, checks, clipping, update, log line, progress."""
    from fledge.config import from_dict
    from fledge.device import pick
    from fledge.log import Progress, RunLog
    from fledge.train.checkpointing import State
    from fledge.train.config import TrainConfig
    from fledge.train.loop import Loop, Run
    from fledge.train.signals import StopRequest

    settings = {"steps": 10**9, "rows": SHAPES[shape][0], "learning_rate": 1e-4, "save_every_steps": 0,
                "threads": threads}  # fmt: skip
    config = from_dict(TrainConfig, settings | ({"compile": "model"} if compiled else {}))
    folder = Path(tempfile.mkdtemp())
    device = pick("cpu", threads=threads)
    log = RunLog(folder / "log.jsonl")
    loop = Loop(Run(folder, config, config, device, fledge_recipe(shape), log), State(), StopRequest())
    loop.announce()
    progress = Progress("step", 10**9, every_seconds=1e9)

    def steps(n: int) -> None:
        for _ in range(n):
            figures = loop.one_step()
            assert figures is not None
            loop.record(figures, progress)

    return steps


def timed(peer: str, shape: str, compiled: bool) -> Callable[[int], Iterator[float]]:
    """A peer of the harness: seconds of a step."""

    def measure(threads: int) -> Iterator[float]:
        if peer == "fledge":
            steps = fledge_loop(shape, compiled, threads)
        else:
            steps = trainer_loop(shape, compiled) if peer == "trainer" else plain_loop(peer, shape, compiled)
        steps(2)
        began = clock(threads)
        steps(1)
        count = max(1, round(SECONDS / (clock(threads) - began)))
        yield 0.0
        while True:
            began = clock(threads)
            steps(count)
            yield (clock(threads) - began) / count

    return measure


def peak_flops(threads: int) -> float:
    """The measured matmul peak, in a process of its own."""
    code = "import sys; from fledge.device import *; print(matmul_peak(pick('cpu', threads=int(sys.argv[1]))))"
    run = subprocess.run([sys.executable, "-c", code, str(threads)], check=True, capture_output=True, text=True)
    return float(run.stdout)


def step_flops(shape: str) -> float:
    """nanoGPT's formula, 6 N + 12 L D T a token, for a decoder (N with the position table left out)."""
    rows, tokens, vocabulary = SHAPES[shape]
    layers, width = (6, 384) if shape == "nanogpt" else (12, 768)
    return rows * tokens * (6 * (12 * layers * width**2 + vocabulary * width) + 12 * layers * width * tokens)


def measured(shape: str, mode: str, threads: str) -> dict[str, Any]:
    """One cell: each peer's seconds, and its seconds over fledge's by rounds."""
    peers = {peer: left_out(peer, shape) for peer in PEERS}
    names = {peer: f"{peer} {shape} {mode}" for peer, why in peers.items() if not why}
    figures = compare(__file__, list(names.values()), int(threads), ROUNDS)
    cell: dict[str, Any] = {"rounds": ROUNDS, "left_out": {peer: why for peer, why in peers.items() if why}}
    for peer, name in names.items():
        cell[peer] = {"seconds": statistics.median(figures[name])}
        if peer != "fledge":
            cell[peer] |= ratio(figures, name, names["fledge"])
    if shape in ("nanogpt", "gpt2"):
        peak = peak_flops(int(threads))
        cell["share_of_peak"] = step_flops(shape) / cell["fledge"]["seconds"] / peak
        cell["matmul_peak_flops"] = peak
    return cell


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--peer"]:
        peer, shape, mode = words[1].split()
        peer_process({words[1]: timed(peer, shape, mode == "compiled")}, words[1], int(words[3]))
        return
    path = RESULTS / "train_shapes.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else {}
    axes = (tuple(SHAPES), MODES, THREADS)
    for cell in itertools.product(*([value for value in axis if value in words] or axis for axis in axes)):
        found = cells[" ".join(cell)] = measured(*cell)
        keep("train_shapes", {"unit": "seconds a step", "cells": cells}, quiet=True)
        beside = ", ".join(f"{peer} {found[peer]['ratio']:.2f}" for peer in PEERS[1:] if peer in found)
        print(f"{' '.join(cell)}: {found['fledge']['seconds']:.3f} s; others / fledge: {beside}", file=sys.stderr)


if __name__ == "__main__":
    main()
