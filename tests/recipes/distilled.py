"""Teachers, students and plain batches for the tests of distillation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import transformers

from fledge.batch import Packed, Padded
from fledge.log import read_log
from fledge.model.folder import load_model, save_model
from fledge.train.config import TrainConfig
from tests.parity.reference import randomised

STEPS = 5
TRAIN = TrainConfig(steps=STEPS, rows=4, row_tokens=32, learning_rate=3e-3, learning_rate_floor=1.0, weight_decay=0.0,
                    clip_norm=0.0, beta2=0.999, eval_every_steps=0, threads=1)  # fmt: skip
SIZES = {"width": 32, "layers": 2, "heads": 2, "context_tokens": 32}


def teacher_of(kind: str, folder: Path, tokenizer, width: int = 32, layers: int = 3, heads: int = 2) -> Path:
    torch.manual_seed(5)
    n = tokenizer.vocab_size
    if kind == "causal":
        config = transformers.GPT2Config(vocab_size=n, n_embd=width, n_layer=layers, n_head=heads, n_positions=32,
                                         bos_token_id=0, eos_token_id=0)  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(vocab_size=n, hidden_size=width, num_hidden_layers=layers,
                                         num_attention_heads=heads, intermediate_size=40,
                                         max_position_embeddings=32)  # fmt: skip
        model = transformers.BertForMaskedLM(config)
    path = folder / f"teacher-{kind}-{width}-{layers}-{heads}"
    randomised(model, 0.3).eval().save_pretrained(path / "raw")
    save_model(load_model(path / "raw"), path, tokenizer)
    return path


def steps_of(run: Path, name: str = "loss") -> list[float]:
    return [event[name] for event in read_log(run / "log.jsonl") if event["kind"] == "step"]


def documents(batch):
    """(ids, targets, weight) of each document of a batch."""
    ids, targets, weight = (part.flatten() for part in (batch.tokens.ids, batch.targets, batch.weight))
    n_rows, n_tokens = batch.tokens.ids.shape
    lengths = batch.layout.lengths if isinstance(batch.layout, Padded) else [n_tokens] * n_rows
    pairs = [(row * n_tokens, row * n_tokens + n) for row, n in enumerate(lengths)]
    if isinstance(batch.layout, Packed):
        pairs = list(pairwise(batch.layout.cu_seqlens))
    doc = batch.tokens.doc.flatten()
    return [(ids[a:b], targets[a:b], weight[a:b]) for a, b in pairs if int(doc[a]) >= 0]
