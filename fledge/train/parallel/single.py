"""A run in one process. `many.Many` is the same for several; the loop knows this face alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fledge.batch import Batch
from fledge.model.transformer import Transformer
from fledge.optim.config import GroupConfig
from fledge.optim.optimizer import norm_of_all
from fledge.optim.part import ALL, Part
from fledge.parallel.group import ALONE, Group
from fledge.train.clock import Clock
from fledge.train.contents import Contents, Whole
from fledge.train.ranks import Alone, Ranks
from fledge.train.recipe import Recipe


class Single:
    """The process holds the whole model, reads all rows and writes."""

    group: Group = ALONE
    ranks: Ranks = Alone()
    part: Part = ALL
    stage = 0
    """Which stage of a pipe this process is; every stage draws its dropout from another seed."""

    def __init__(self, model: Transformer):
        self.model = model
        self.n_parameters = sum(p.numel() for p in model.parameters())

    def shard(self) -> None:
        """What comes after the model is checkpointed and compiled: its weights are shared out."""

    def restore(self, folder: Path) -> None:
        """The weights of a checkpoint into a model that was shared out before it had any."""

    @torch.no_grad()
    def go_back(self, folder: Path, load_at: Callable[[Path], Transformer]) -> None:
        """The weights of a checkpoint of this run into the model."""
        found = dict(load_at(folder).named_parameters())
        for name, parameter in self.model.named_parameters():
            parameter.copy_(found[name])

    def rows(self, n_rows: int) -> range:
        """The rows of a global batch that this process reads."""
        return range(n_rows)

    def groups(self, groups: Sequence[GroupConfig]) -> Sequence[GroupConfig]:
        """Those groups that have a parameter here."""
        return groups

    def weights(self, recipe: Recipe, batch: Batch) -> dict[str, float]:
        """The global weight of each loss term, for which a recipe may ask the model."""
        return recipe.weights(batch)

    def passes(
        self,
        starts: Sequence[int],
        micro: Callable[[int], Batch],
        objective: Callable[[Batch], Tensor | None],
        clock: Clock,
    ) -> None:
        """A forward and a backward pass for the micro-batch that begins at each of `starts`."""
        for start in starts:
            loss = objective(micro(start))
            with clock("backward"):
                if loss is not None:
                    loss.backward()

    def reduce_gradients(self) -> None:
        """Make them those of the global batch."""

    def terms(self, found: dict[str, float], names: Sequence[str]) -> dict[str, float]:
        """The loss by terms, summed over processes."""
        return found

    def means(self, metrics: dict[str, tuple[float, float]]) -> dict[str, float]:
        """Each metric's mean, of its total and weight, over processes."""
        if not metrics:
            return {}
        totals = self.terms({name: total for name, (total, _) in metrics.items()}, list(metrics))
        weights = self.terms({name: weight for name, (_, weight) in metrics.items()}, list(metrics))
        return {name: totals[name] / weights[name] for name in metrics if weights[name] > 0}

    def norm(self, parameters: list[Tensor]) -> float:
        """The norm of the whole model's gradient."""
        return norm_of_all(parameters)

    def stepped(self) -> None:
        """After the optimizer's step."""

    def validated(self, recipe: Recipe, rows: int) -> dict[str, float]:
        with torch.inference_mode():
            return recipe.validate(rows)

    def contents(self, recipe: Recipe, moments: dict[str, Tensor]) -> Contents:
        """What this process writes into a checkpoint of now."""
        return Whole(recipe, moments)

    @contextmanager
    def whole_model(self, recipe: Recipe) -> Iterator[bool]:
        """While in it, `recipe.model` is the whole model where it gives true: on rank 0, which alone writes."""
        yield True

    def leave_whole(self, recipe: Recipe) -> None:
        """The run is over: `recipe.model` stays the whole model, on rank 0."""
