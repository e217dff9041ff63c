"""What the maps of a model read on calibration text, block by block: only one block's inputs are kept at a time.

R rows, T tokens, D width, I inputs of a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fledge.batch import OneDocument, one_document
from fledge.compress.units import Unit
from fledge.errors import ConfigError, DataError
from fledge.model.transformer import Transformer
from fledge.nn.attention import Context
from fledge.nn.block import Block, Stack
from fledge.text.documents import read_documents
from fledge.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096
TEXT_PER_TOKEN = 8  # so much more text than is needed is read, for rows from different places
LONGEST = 512


def calibration_rows(tokenizer: Tokenizer, path: Path, n_rows: int, row_tokens: int, seed: int) -> Tensor:
    """`n_rows` stretches of `row_tokens` tokens of the text at `path`, int64 [R, T], from places that `seed` draws.
    Raises DataError where the text is shorter than one row."""
    if not path.exists():
        raise DataError(f"calibration: expected text at {path}, found nothing; check the path")
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids: list[int] = []
    wanted = n_rows * row_tokens * TEXT_PER_TOKEN
    for document in read_documents(path):
        # of one huge document the beginning is enough
        ids += start + tokenizer.encode_array(document.text[: 8 * wanted]).tolist()
        if len(ids) >= wanted:
            break
    if len(ids) < row_tokens:
        raise DataError(
            f"{path}: expected at least {row_tokens} tokens to calibrate with, got {len(ids)}; give more text, or set "
            "row_tokens"
        )
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - row_tokens + 1, (n_rows,), generator=generator)
    return torch.tensor(ids)[starts[:, None] + torch.arange(row_tokens)]


def row_tokens_of(model: Transformer, asked: int, loss: bool = False) -> int:
    """Tokens of a row. Raises ConfigError for more than the model takes, and for rows without a next token where their
    `loss` is asked for."""
    longest = model.config.context_tokens
    if loss and asked == 1:
        raise ConfigError("row_tokens: expected at least 2, whose loss tells what is important, got 1; 0 takes many")
    if asked > longest:
        raise ConfigError(f"row_tokens: expected at most the model's {longest}, got {asked}")
    return asked or min(LONGEST, longest)


def batches(rows: Tensor) -> Iterator[Tensor]:
    """Some rows at a time."""
    yield from rows.split(max(1, BATCH_TOKENS // rows.shape[1]))


@dataclass
class Moments:
    """Of what a map has read: `hessian` the mean of x xᵀ [I, I] and `mean_abs` the mean of |x| [I], over `n` tokens."""

    hessian: Tensor
    mean_abs: Tensor
    n: int = 0

    def add(self, x: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).float()
        n = self.n + x.shape[0]
        share = self.n / max(1, n)
        self.hessian.mul_(share).addmm_(x.t(), x, alpha=1 / max(1, n))
        self.mean_abs.mul_(share).add_(x.abs().sum(0), alpha=1 / max(1, n))
        self.n = n


class Walk:
    """Rows of text on their way through a stack of blocks. `hidden` is what the current block reads, a tensor for each
    batch: the one thing that grows with the number of rows."""

    def __init__(self, model: Transformer, rows: Tensor):
        self.stack = walkable(model)
        self.hidden: list[Tensor] = []
        self.contexts: list[Context] = []
        device = model.embedding.weight.device
        with torch.no_grad():
            for ids in batches(rows):
                tokens = one_document(ids.to(device))
                context = model.context(self.stack.config, tokens, OneDocument())
                self.hidden.append(self.stack.begin(model.embed(tokens), context))
                self.contexts.append(context)

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Each block in order; whatever was changed in it counts for those after."""
        for index, block in enumerate(self.stack.blocks()):
            yield index, block
            self.hidden = list(self.outputs(index, block))

    @torch.no_grad()
    def outputs(self, index: int, block: Block) -> Iterator[Tensor]:
        for x, context in zip(self.hidden, self.contexts, strict=True):
            yield block(x, context, index)

    def moments(self, unit: Unit, index: int) -> Moments:
        """What a unit of the current block reads."""
        size = unit.inputs
        device = unit.weights[0].device
        found = Moments(torch.zeros(size, size, device=device), torch.zeros(size, device=device))
        module: nn.Module = next(iter(unit.maps.values()))
        name = unit.name.rpartition(".")[2]
        reader = getattr(unit.parent, name, module)
        handle = reader.register_forward_pre_hook(lambda _, inputs: found.add(inputs[0]))
        try:
            for _ in self.outputs(index, unit.block):
                pass
        finally:
            handle.remove()
        return found


def walkable(model: Transformer) -> Stack:
    """The one stack of a model whose blocks follow each other. Raises ConfigError for others."""
    stacks = [stack for stack in (model.encoder, model.decoder) if stack is not None]
    if len(stacks) != 1 or stacks[0].config.shared or stacks[0].conv is not None:
        raise ConfigError(
            "method: gptq, awq and every pruning but magnitude expect one stack of blocks with weights of their own, "
            "got an encoder with a decoder, shared blocks or a convolution; quantize by rtn, prune by magnitude"
        )
    return stacks[0]
