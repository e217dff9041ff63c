"""A mixture of datasets: which, in what shares of the tokens, and how the shares change with time. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fledge.data.mixture_config import SourceConfig, StageConfig
from fledge.data.permutation import keyed_numbers
from fledge.data.picks import Picks
from fledge.data.shards import Dataset
from fledge.errors import DataError
from fledge.text.tokenizer import Tokenizer

NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class Source:
    """An opened dataset of a mixture. `seed_of` gives it an order of its own."""

    config: SourceConfig
    dataset: Dataset

    @property
    def name(self) -> str:
        return self.config.called

    def seed_of(self, seed: int) -> int:
        return int(keyed_numbers("source", seed, self.name)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Mixture:
    """Opened datasets of one tokenizer, with their weights."""

    sources: tuple[Source, ...]
    stages: tuple[StageConfig, ...] = ()

    def __post_init__(self) -> None:
        first = self.sources[0]
        for source in self.sources[1:]:
            if source.dataset.tokenizer.digest != first.dataset.tokenizer.digest:
                raise DataError(
                    f"data.mixture: expected datasets of one tokenizer, got {tokenizer_of(first)} and "
                    f"{tokenizer_of(source)}; build one of them again with the other's tokenizer folder"
                )

    @property
    def tokenizer(self) -> Tokenizer:
        return self.sources[0].dataset.tokenizer

    @property
    def weights(self) -> np.ndarray:
        """Each source's share of the tokens as the mixture states it, float64 [S], adding up to 1."""
        return shares([source.config.weight for source in self.sources])

    @cached_property
    def digest(self) -> str:
        """What a run is tied to: the content of every source, its name, weight and limit, and the stages."""
        parts = [f"{s.name} {s.dataset.digest} {s.config.weight!r} {s.config.max_epochs!r}" for s in self.sources]
        parts += [f"{s.from_step} {s.ramp_steps} {sorted(s.weights.items())!r}" for s in self.stages]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def parents(self) -> dict[str, str]:
        """Digests for the card of what is made of it."""
        return {f"data {source.name}": source.dataset.card["digest"] for source in self.sources}

    def shares_at(self, batches: np.ndarray) -> np.ndarray:
        """Each source's share of the tokens of batches by their numbers, int64 [n] -> float64 [n, S]."""
        now = self.weights
        knots, values = [-2], [now]
        for stage in self.stages:
            names = [source.name for source in self.sources]
            new = shares([stage.weights.get(name, 0.0) for name in names])
            ramp = stage.ramp_steps
            knots += [stage.from_step, stage.from_step + ramp] if ramp else [stage.from_step - 1, stage.from_step]
            values += [now, new]
            now = new
        table = np.array(values)
        return np.stack([np.interp(batches, knots, column) for column in table.T], 1)

    def picks(self, sizes: Sequence[tuple[int, int]], rows: int, seed: int) -> Picks:
        """Which source each row is of. `sizes`: each one's rows and tokens of text in an epoch; `rows` of a batch.

        A share of the tokens is no share of the rows where one source's rows hold more than another's: chances are
        divided by the mean tokens of a row."""
        epochs = np.array([n_rows for n_rows, _ in sizes])
        per_row = np.array([n_tokens / n_rows for n_rows, n_tokens in sizes])
        most = np.array([source.config.max_epochs for source in self.sources])
        limits = np.where(most > 0, np.floor(most * epochs + 1e-9), NO_LIMIT).astype(np.int64)
        constant = self.shares_at(np.zeros(1, np.int64)) / per_row

        def chances(numbers: np.ndarray) -> np.ndarray:
            if not self.stages:
                return np.broadcast_to(constant, (len(numbers), len(sizes)))
            return self.shares_at(numbers // rows) / per_row

        return Picks(chances, limits, seed)


def tokenizer_of(source: Source) -> str:
    tokenizer = source.dataset.tokenizer
    kind = f"{tokenizer.kind}, {tokenizer.vocab_size:,} entries, digest {tokenizer.digest[:12]}"
    return f"{source.dataset.folder} ({kind})"


def shares(weights: Sequence[float]) -> np.ndarray:
    found = np.array(weights, np.float64)
    return found / found.sum()


@dataclass(frozen=True)
class SourcePlan:
    """What a run reads of a source: tokens of text, in how many epochs, and its share of all that is read."""

    name: str
    rows: int
    tokens: int
    epochs: float
    share: float
    weight: float
    spent: bool
    """It is read as often as it may be."""


def planned(mixture: Mixture, sizes: Sequence[tuple[int, int]], steps: int, rows: int, seed: int) -> list[SourcePlan]:
    """What `steps` batches of `rows` rows read of each source. Raises DataError if the sources don't last that long."""
    picks = mixture.picks(sizes, rows, seed)
    counts = picks.counts(steps * rows)
    tokens = [round(n * size[1] / size[0]) for n, size in zip(counts.tolist(), sizes, strict=True)]
    return [
        SourcePlan(source.name, n, t, n / size[0], t / max(1, sum(tokens)), float(weight), n == limit)
        for source, n, t, size, weight, limit in zip(
            mixture.sources, counts.tolist(), tokens, sizes, mixture.weights, picks.limits.tolist(), strict=True
        )
    ]


def plan_lines(plan: Sequence[SourcePlan]) -> list[str]:
    """The plan for people, a source a line."""
    width = max((len(source.name) for source in plan), default=0)
    return [
        f"{source.name:<{width}}  {source.tokens:>15,} tokens  {100 * source.share:5.1f} %  {source.epochs:8.2f} epochs"
        + (" (then spent: the others share its part)" if source.spent else "")
        for source in plan
    ]
