"""What is written into a checkpoint: the whole of a model, or the shares of several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fledge.model.config import ModelConfig
from fledge.train import checkpointing
from fledge.train.checkpointing import State
from fledge.train.ranks import Ranks
from fledge.train.recipe import Recipe
from fledge.train.sharded import save_sharded
from fledge.train.slices import Slice, n_bytes_of
from fledge.train.snapshot import copied, frozen_recipe, snapshot_bytes


class Contents(Protocol):
    """One process's share of a checkpoint."""

    @property
    def n_bytes(self) -> int:
        """Of a copy in host memory."""

    def frozen(self) -> Contents:
        """The same over copies of every tensor, which training doesn't move."""

    def write(self, root: Path, state: State, ranks: Ranks, meddle: Callable[[], None]) -> None:
        """Write the checkpoint of `state.step` under `root`; every one of `ranks` calls it. `meddle`: a fault of a
        test, before the first file. Raises CheckpointError, NonFiniteError."""


@dataclass(frozen=True)
class Whole:
    """All of it, by the one process that there is."""

    recipe: Recipe
    moments: dict[str, Tensor]

    @property
    def n_bytes(self) -> int:
        return snapshot_bytes(self.recipe.model, self.moments)

    def frozen(self) -> Whole:
        return Whole(frozen_recipe(self.recipe), {name: copied(tensor) for name, tensor in self.moments.items()})

    def write(self, root: Path, state: State, ranks: Ranks, meddle: Callable[[], None]) -> None:
        meddle()
        checkpointing.save_checkpoint(root, state, self.recipe.save, self.moments)


@dataclass(frozen=True)
class Share:
    """The slices that this process writes; `describe` writes what of a model folder is no weight."""

    config: ModelConfig
    weights: Sequence[Slice]
    moments: Sequence[Slice]
    describe: Callable[[Path], None]

    @property
    def n_bytes(self) -> int:
        return n_bytes_of((*self.weights, *self.moments))

    def frozen(self) -> Share:
        weights, moments = (
            [replace(one, tensor=copied(one.tensor)) for one in slices] for slices in (self.weights, self.moments)
        )
        return replace(self, weights=weights, moments=moments)

    def write(self, root: Path, state: State, ranks: Ranks, meddle: Callable[[], None]) -> None:
        save_sharded(root, state, self.config, self.weights, self.moments, self.describe, ranks, meddle)


@dataclass(frozen=True)
class Beside:
    """As Share, of what is no model folder alone (an adapter's, or one with a value head): rank 0 writes it by
    `recipe`, which the others have none of; of the optimizer's state each writes its slices. `gathered`: the recipe's
    model is a copy already."""

    recipe: Recipe | None
    moments: Sequence[Slice]
    gathered: bool = False

    @property
    def n_bytes(self) -> int:
        whole = 0 if self.recipe is None else snapshot_bytes(self.recipe.model, {})
        return whole + n_bytes_of(self.moments)

    def frozen(self) -> Beside:
        recipe = self.recipe if self.recipe is None or self.gathered else frozen_recipe(self.recipe)
        return Beside(recipe, [replace(one, tensor=copied(one.tensor)) for one in self.moments], True)

    def write(self, root: Path, state: State, ranks: Ranks, meddle: Callable[[], None]) -> None:
        save_sharded(root, state, None, (), self.moments, self.save, ranks, meddle)

    def save(self, folder: Path) -> None:
        assert self.recipe is not None, "rank 0 alone writes"
        self.recipe.save(folder)
