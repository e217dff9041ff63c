"""`Row`, one sequence's share of a forward pass, and the face a runner shows to the engine. Imports no torch.

k tokens of a row, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from fledge.tune.changes import Changes


@dataclass(frozen=True, slots=True)
class Source:
    """Token ids for an encoder. `name` is a hash of them and of what else their keys and values depend on."""

    name: bytes
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens `ids` that stand at positions `start`… of the document whose cache blocks are `blocks`, in order, up to
    the last of these tokens. A block that no layer looks back to any more may stand as -1.

    `sequence`, below the runner's `n_slots`, names the document for what is kept of it beside its blocks. A row with
    start 0 begins a new document. `all_logits` asks for the logits after every token, not after the last alone.
    `source` is what a decoder with an encoder reads besides; `adapter` the key of what stands beside the base, "" for
    the base alone. `copied`: (from, to), two blocks; before any row of the pass is computed the second takes over what
    the first holds.
    """

    blocks: tuple[int, ...]
    start: int
    ids: tuple[int, ...]
    all_logits: bool = False
    sequence: int = 0
    source: Source | None = None
    adapter: str = ""
    copied: tuple[int, int] | None = None


def copies(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """The pairs of blocks to copy before a pass over these rows."""
    return [row.copied for row in rows if row.copied is not None]


class RunnerFace(Protocol):
    """What the engine needs of a model: blocks of cache and one function.

    `forward` gives, for each row, float32 logits [k, V] (tensors or arrays) with k = 1 (after the last token) or
    len(ids). Giving the same row again must be harmless: after an error the engine retries rows one by one.
    `n_slots` documents at most go side by side. `window`: how many tokens, itself among them, a token reads of its
    document at most; None: all. `shares`: whether a document may go on from the blocks of another that begins alike.

    `source_tokens`: the longest source of an encoder; 0: there is none. Its rows name a source each, which the runner
    encodes when it first meets it and keeps until `forget`. `start_id` begins the decoder's document. `reach_tokens`:
    the longest document of a request that goes on past the context; 0: there is none.

    `read_adapter` reads what a folder changes of the model, at any time and in any thread; rows may name the key that
    `add_adapter` gives it until `remove_adapter`.
    """

    n_slots: int
    context_tokens: int
    vocab_size: int
    n_blocks: int
    block_tokens: int
    window: int | None
    shares: bool
    source_tokens: int
    start_id: int
    reach_tokens: int

    def forward(self, rows: list[Row]) -> Sequence[Tensor | np.ndarray]: ...

    def forget(self, source_name: bytes) -> None: ...

    def load_weights(self, state: Mapping[str, Tensor]) -> None: ...

    def read_adapter(self, folder: str) -> Changes: ...

    def add_adapter(self, key: str, changes: Changes) -> None: ...

    def remove_adapter(self, key: str) -> None: ...


def as_array(logits: Tensor | np.ndarray) -> np.ndarray:
    """What a runner gives, [k, V], as numpy."""
    return logits if isinstance(logits, np.ndarray) else logits.numpy(force=True)
