"""What the loop asks of a method: batches, a loss, a validation, and how to save. Nothing subclasses the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fledge.batch import Batch, Loss
from fledge.model.transformer import Transformer


class Totals(Protocol):
    """From batches, the indices of some and what each of them gives: the sums. Of none: an empty list."""

    def __call__(
        self, batches: Sequence[Batch], chosen: list[int], sums: Callable[[Batch], list[float]]
    ) -> list[float]: ...


def added_up(batches: Sequence[Batch], chosen: list[int], sums: Callable[[Batch], list[float]]) -> list[float]:
    """Element by element."""
    return [sum(column) for column in zip(*(sums(batches[index]) for index in chosen), strict=True)]


class Recipe(Protocol):
    """One training method over one built model."""

    model: Transformer
    data_digest: str
    """Changes when the data does; resume refuses other data."""
    totals: Totals
    """How `validate` adds up over batches: many processes put a way of their own here."""

    def batch(self, index: int) -> Batch:
        """The global batch `index`: a pure function of (seed, index)."""

    def weights(self, batch: Batch) -> dict[str, float]:
        """The global weight of each loss term: known from the data, before any forward pass."""

    def loss(self, batch: Batch) -> Loss:
        """The loss of a micro-batch as sums."""

    def validate(self, rows: int) -> dict[str, float]:
        """`val_loss` and further figures on held-out data; `rows` 0 takes all of it."""

    def save(self, folder: Path) -> None:
        """Write the model, tokenizer and template into `folder` (no card)."""

    def describe(self, folder: Path) -> None:
        """Of what `save` writes, all but the weights: several processes write those themselves."""


@dataclass(frozen=True)
class Hook:
    """Call `act(step)` after every `every_steps` updates, and once before the first: on rank 0, beside the whole model,
    or `everywhere`."""

    every_steps: int
    act: Callable[[int], None]
    everywhere: bool = False
