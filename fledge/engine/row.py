"""`Row`, one sequence's share of a forward pass, and the face a runner shows to the engine. Imports no torch.

k tokens of a row, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens `ids` that stand at positions `start`… of the document in cache slot `slot`.

    A row with start 0 begins a new document: whatever the slot held before is gone. `all_logits` asks for the logits
    after every token, not after the last alone.
    """

    slot: int
    start: int
    ids: tuple[int, ...]
    all_logits: bool = False


class RunnerFace(Protocol):
    """What the engine needs of a model: slots of cache and one function.

    `forward` gives, for each row, float32 logits [k, V] (tensors or arrays) with k = 1 (after the last token) or
    len(ids). Giving the same row again must be harmless: after an error the engine retries rows one by one.
    """

    n_slots: int
    context_tokens: int
    vocab_size: int

    def forward(self, rows: list[Row]) -> Sequence[Tensor | np.ndarray]: ...
