"""Reading llama2.c checkpoints (version 0 of karpathy/llama2.c's export): seven int32, then float32 weights."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from fledge.errors import CheckpointError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family
from fledge.model.folder import put_parameter
from fledge.model.transformer import Transformer, build

HEADER = struct.Struct("<7i")


@dataclass(frozen=True)
class Piece:
    """One tensor of the file, stacked over layers: our names with `{i}`, shape a layer, and whether rows are rotary
    pairs (c, c+1) that ours keeps as (c, c + C/2)."""

    ours: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0
    per_layer: bool = True


def load_llama2c(path: str | Path) -> Transformer:
    """The model of a llama2.c file. Raises CheckpointError unless its size is what its header says, to the byte."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a llama2.c file, found none; check the path")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            raise CheckpointError(f"{path.name}: expected a llama2.c header of {HEADER.size} bytes, got {len(head)}")
        width, hidden, n_layers, n_heads, n_kv_heads, vocab, context = HEADER.unpack(head)
        tie, vocab = vocab > 0, abs(vocab)
        numbers = (width, hidden, n_layers, n_heads, n_kv_heads, vocab, context)
        if min(numbers) < 1 or n_layers > 4096 or width % n_heads or n_heads % n_kv_heads:
            raise CheckpointError(f"{path.name}: header {numbers} is no llama2.c model; is this a version 0 file?")
        shape = ShapeConfig(
            "llama", width=width, hidden=hidden, layers=n_layers, heads=n_heads, kv_heads=n_kv_heads,
            vocab_size=vocab, context_tokens=context, tie=tie, norm_eps=1e-5,
        )  # fmt: skip
        config = family("llama").build(shape)
        pieces = list(layout(config, hidden))
        angles = 2 * context * (width // n_heads // 2)
        expected = HEADER.size + 4 * (sum(count(piece, n_layers) for piece in pieces) + angles)
        expected += 0 if tie else 4 * vocab * width
        if size != expected:
            raise CheckpointError(f"{path.name}: expected {expected} bytes by its header, got {size}; it is damaged")
        return read(file, config, pieces, angles)


def layout(config: ModelConfig, hidden: int) -> Iterator[Piece]:
    stack = config.stack
    heads = stack.layers[0].mixer
    width, block = stack.width, "decoder.layers.{i}."
    kv = heads.n_kv_heads * heads.head_channels
    yield Piece("embedding.weight", (config.vocab_size, width), per_layer=False)
    yield Piece(f"{block}attention_norms.before.weight", (width,))
    yield Piece(f"{block}attention.qkv.q.weight", (width, width), heads.n_heads)
    yield Piece(f"{block}attention.qkv.k.weight", (kv, width), heads.n_kv_heads)
    yield Piece(f"{block}attention.qkv.v.weight", (kv, width))
    yield Piece(f"{block}attention.out.weight", (width, width))
    yield Piece(f"{block}ffn_norms.before.weight", (width,))
    yield Piece(f"{block}ffn.inward.gate.weight", (hidden, width))
    yield Piece(f"{block}ffn.down.weight", (width, hidden))
    yield Piece(f"{block}ffn.inward.up.weight", (hidden, width))
    yield Piece("decoder.norm.weight", (width,), per_layer=False)


def count(piece: Piece, n_layers: int) -> int:
    return int(np.prod(piece.shape, dtype=np.int64)) * (n_layers if piece.per_layer else 1)


def read(file: BinaryIO, config: ModelConfig, pieces: list[Piece], angles: int) -> Transformer:
    model = build(config)
    for piece in pieces:
        for index in range(len(config.stack.layers) if piece.per_layer else 1):
            tensor = take(file, piece.shape)
            if piece.interleaved_heads:
                tensor = half_split(tensor, piece.interleaved_heads)
            put_parameter(model, piece.ours.replace("{i}", str(index)), tensor)
    take(file, (angles,))  # cosines and sines, which we compute
    if not config.tie:
        put_parameter(model, "output.weight", take(file, (config.vocab_size, config.stack.width)))
    return model.eval()


def take(file: BinaryIO, shape: tuple[int, ...]) -> Tensor:
    array = np.fromfile(file, dtype="<f4", count=int(np.prod(shape, dtype=np.int64)))
    return torch.from_numpy(array).view(shape)


def half_split(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of each head from pairs (c, c+1) to pairs (c, c + C/2)."""
    rows, width = weight.shape
    return weight.view(n_heads, rows // n_heads // 2, 2, width).transpose(1, 2).reshape(rows, width).contiguous()
