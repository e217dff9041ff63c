"""How an objective reads data: a dataset's shards, or those of a mixture. The one place where the two differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fledge.batch import Batch
from fledge.data.keyed_batches import EveryRow, KeyedBatches
from fledge.data.mixed_batches import MixedBatches, RowSource
from fledge.data.mixture import Mixture, SourcePlan, planned
from fledge.data.shards import Dataset, Shard
from fledge.recipes.held_out import HeldOut
from fledge.train.config import TrainConfig


@dataclass(frozen=True)
class Reading:
    """What an objective makes of a shard: `batches(shard, rows, seed)` without end to train on, `held_out(shard, rows)`
    with every row once to validate on."""

    batches: Callable[[Shard, int, int], RowSource]
    held_out: Callable[[Shard, int], Sequence[Batch]]


def keyed_reading(batches: Callable[[Shard, int, int], KeyedBatches]) -> Reading:
    """Of batches whose rows are made by a key: held-out rows are those of epoch 0 of seed 0 for ever."""
    return Reading(batches, lambda shard, rows: EveryRow(batches(shard, rows, 0)) if shard.n_tokens else ())


def mixed(
    reading: Reading, mixture: Mixture, train: TrainConfig, evaluation_rows: int, pad_id: int
) -> tuple[MixedBatches, tuple[HeldOut, ...], list[SourcePlan]]:
    """A mixture's training batches, held-out batches and plan. Raises DataError if it doesn't last for the run."""
    sources = [
        reading.batches(named(source.dataset.train, source.name), train.rows, source.seed_of(train.seed))
        for source in mixture.sources
    ]
    sizes = [(source.rows_per_epoch, source.tokens_per_epoch) for source in sources]
    batches = MixedBatches(sources, mixture.picks(sizes, train.rows, train.seed), train.rows, pad_id)
    held_out = tuple(
        HeldOut(source.name, float(weight), reading.held_out(named(source.dataset.val, source.name), evaluation_rows))
        for source, weight in zip(mixture.sources, mixture.weights, strict=True)
    )
    return batches, held_out, planned(mixture, sizes, train.steps, train.rows, train.seed)


def named(shard: Shard, source: str) -> Shard:
    """The shard as messages and samples call it."""
    return replace(shard, name=f"{source} {shard.name}")


Data = Dataset | Mixture
