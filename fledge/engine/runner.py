"""The runner: forward passes for the scheduler, over cache slots, on weights packed for inference.

V vocabulary. A row is one document's next tokens; decoding rows (one token) go together, prefills one by one.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from fledge.batch import Cached, Tokens
from fledge.engine.row import Row
from fledge.errors import ConfigError
from fledge.model.folder import find_model, load_model, stop_ids
from fledge.model.transformer import Transformer, new_cache
from fledge.nn.linear import Joined, Linear, PackedLinear, native, pack
from fledge.nn.native.library import build_in_background
from fledge.nn.native.linear import PanelEmbedding, float_linear
from fledge.text.tokenizer import Tokenizer


class Runner:
    """A model with a cache of `n_slots` documents of up to `context_tokens` tokens.

    `model` is packed in place and belongs to the runner from then on; give `copied(model)` to keep yours.
    """

    def __init__(self, model: Transformer, n_slots: int = 8, context_tokens: int = 0):
        longest = model.config.context_tokens
        if not 0 <= context_tokens <= longest:
            raise ConfigError(f"context_tokens: expected at most the model's {longest}, got {context_tokens}")
        self.n_slots, self.context_tokens = n_slots, context_tokens or longest
        self.vocab_size = model.config.vocab_size
        self.model = pack_in_place(model.eval())
        self.device = model.embedding.weight.device
        self.cache = new_cache(model, n_slots, self.context_tokens)

    @torch.inference_mode()
    def forward(self, rows: list[Row]) -> list[Tensor]:
        """float32 logits [k, V] a row: k is 1 (the last token) or, with `all_logits`, every token."""
        results: list[Tensor | None] = [None] * len(rows)
        single = [i for i, row in enumerate(rows) if len(row.ids) == 1]
        if single:
            logits = self.logits([rows[i] for i in single], last_only=False)
            for b, i in enumerate(single):
                results[i] = logits[b]
        for i, row in enumerate(rows):
            if len(row.ids) > 1:
                results[i] = self.logits([row], last_only=not row.all_logits)[0]
        return results  # type: ignore[return-value]

    def logits(self, rows: list[Row], last_only: bool) -> Tensor:
        """Rows of equal length in one pass: [B, T or 1, V]."""
        ids = torch.tensor([row.ids for row in rows], device=self.device)
        length = ids.shape[1]
        starts = tuple(row.start for row in rows)
        pos = torch.tensor(starts, device=self.device)[:, None] + torch.arange(length, device=self.device)
        layout = Cached(tuple(row.slot for row in rows), starts, (length,) * len(rows))
        hidden = self.model.hidden(Tokens(ids, pos, torch.zeros_like(ids)), layout, self.cache)
        return self.model.logits(hidden[:, -1:] if last_only else hidden).float()


def copied(model: Transformer) -> Transformer:
    """A copy to hand to a Runner while `model` goes on training."""
    return copy.deepcopy(model).requires_grad_(False)


def pack_in_place(model: Transformer) -> Transformer:
    """Replace every linear by its packed copy, one at a time, so that a weight exists twice for a moment only."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Joined | Linear) and not isinstance(parent, Joined):
                setattr(parent, name, pack(child))
    if model.output is None:
        tie(model)
    return model


def tie(model: Transformer) -> None:
    """Give a tied output its product, the matrix kept once: rows are looked up in the kernels' panels, or the product
    reads the embedding, transposed."""
    weight = model.embedding.weight.detach()
    if native(weight):
        model.output = float_linear(weight, None)
        model.embedding = PanelEmbedding(model.output)  # type: ignore[assignment]  # answers as one
    else:
        model.output = PackedLinear(weight.t(), None)


def load_runner(
    folder: str | Path, n_slots: int = 8, threads: int = 0, context_tokens: int = 0
) -> tuple[Runner, Tokenizer, frozenset[int]]:
    """Runner, tokenizer and stop ids of a model folder (or run folder)."""
    if threads:
        torch.set_num_threads(threads)
    build_in_background()
    folder = find_model(folder)
    tokenizer = Tokenizer.load(folder)
    model = load_model(folder)
    return Runner(model, n_slots, context_tokens), tokenizer, stop_ids(folder, tokenizer)
