"""What full blocks of cache hold: from a document's beginning to the blocks that know it already. Imports no torch.

A block's key is a hash of its tokens and of the key before it, so it names everything up to the block's end; the first
key is a hash of what else the keys and values depend on, and of who may share them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

KEY_BYTES = 16


def root_key(*facts: str) -> bytes:
    """The key before a document's first block: of the tenant, the weights' version and whatever else must be equal."""
    told = b"".join(len(part).to_bytes(8, "big") + part for part in (fact.encode() for fact in facts))
    return hashlib.blake2b(told, digest_size=KEY_BYTES).digest()


def chain_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a block that holds `tokens` after what `parent` names."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=KEY_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Content:
    """What a block holds: its tokens, after what the key `parent` names."""

    key: bytes
    parent: bytes
    tokens: tuple[int, ...]


class PrefixIndex:
    """Blocks by content. A key that two contents share is no hit: tokens and parents are compared."""

    def __init__(self) -> None:
        self.block_of: dict[bytes, int] = {}
        self.content_of: dict[int, Content] = {}

    def find(self, content: Content) -> int | None:
        """The block that holds this, or None."""
        block = self.block_of.get(content.key)
        return block if block is not None and self.content_of[block] == content else None

    def add(self, block: int, content: Content) -> None:
        """`block` holds this from now on. Another block that does already stays the one that is found."""
        if content.key not in self.block_of:
            self.block_of[content.key] = block
            self.content_of[block] = content

    def forget(self, block: int) -> None:
        del self.block_of[self.content_of.pop(block).key]

    def knows(self, block: int) -> bool:
        return block in self.content_of
