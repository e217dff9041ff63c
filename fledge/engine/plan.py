"""`Plan`: what rank 0 has the other processes compute beside it, and how it tells them."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from fledge.engine.row import Row, Source

HEAD_BYTES = 4096
"""Sent of every plan, its length first; most are no longer."""
LENGTH_BYTES = 8


@dataclass(frozen=True)
class Plan:
    """The rows of one pass, in order; sources to forget before it; whether it is the last."""

    rows: tuple[Row, ...] = ()
    forgotten: tuple[bytes, ...] = ()
    last: bool = False

    def packed(self, known: Container[bytes]) -> bytes:
        """As bytes. A source whose name is `known` goes without its ids."""
        rows = [
            [
                row.blocks,
                row.start,
                row.ids,
                row.all_logits,
                row.sequence,
                source_to_plain(row.source, known),
                row.copied,
            ]
            for row in self.rows
        ]
        plain = [rows, [name.hex() for name in self.forgotten], self.last]
        return json.dumps(plain, separators=(",", ":")).encode()


def unpacked(packed: bytes) -> Plan:
    rows, forgotten, last = json.loads(packed)
    return Plan(tuple(map(row_from_plain, rows)), tuple(map(bytes.fromhex, forgotten)), last)


def row_from_plain(plain: list[Any]) -> Row:
    blocks, start, ids, all_logits, sequence, source, copied = plain
    read = None if source is None else Source(bytes.fromhex(source[0]), tuple(source[1]))
    return Row(tuple(blocks), start, tuple(ids), all_logits, sequence, read, copied=pair_of(copied))


def pair_of(plain: list[int] | None) -> tuple[int, int] | None:
    return None if plain is None else (plain[0], plain[1])


def source_to_plain(source: Source | None, known: Container[bytes]) -> list[Any] | None:
    return None if source is None else [source.name.hex(), [] if source.name in known else source.ids]


def tell(packed: bytes) -> None:
    """By rank 0: to all others, who must `hear` it."""
    message = len(packed).to_bytes(LENGTH_BYTES, "big") + packed
    size = max(HEAD_BYTES, len(message))
    whole = torch.zeros(size, dtype=torch.uint8)
    whole[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    dist.broadcast(whole[:HEAD_BYTES], 0)
    if size > HEAD_BYTES:
        dist.broadcast(whole[HEAD_BYTES:].clone(), 0)


def hear() -> bytes:
    """What rank 0 tells next."""
    head = torch.empty(HEAD_BYTES, dtype=torch.uint8)
    dist.broadcast(head, 0)
    text = bytes(head.tolist())
    n_bytes = int.from_bytes(text[:LENGTH_BYTES], "big")
    missing = n_bytes + LENGTH_BYTES - HEAD_BYTES
    if missing > 0:
        rest = torch.empty(missing, dtype=torch.uint8)
        dist.broadcast(rest, 0)
        text += bytes(rest.tolist())
    return text[LENGTH_BYTES : LENGTH_BYTES + n_bytes]
