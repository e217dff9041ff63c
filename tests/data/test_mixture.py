"""Mixtures: which source a row is of, shares of the tokens over any window, epochs, limits, stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fledge.batch import PADDING
from fledge.config import from_dict
from fledge.data.batches import TextBatches
from fledge.data.masked_batches import MaskedBatches
from fledge.data.mixed_batches import MixedBatches
from fledge.data.mixture import Mixture, Source, planned
from fledge.data.mixture_config import SourceConfig, StageConfig, check_mixture
from fledge.data.objectives import MaskingConfig
from fledge.data.picks import BLOCK, Picks
from fledge.data.shards import Dataset, Shard, shard_of
from fledge.errors import ConfigError, DataError
from fledge.recipes.config import TextDataConfig
from fledge.text.tokenizer import byte_level
from tests.data.corrupted import stories, wordpiece

DEVIATIONS = 4.5  # by chance alone once in 150,000
FREE = 1 << 62


def dataset(shard: Shard, name: str = "a") -> Dataset:
    return Dataset(Path(name), shard, shard, wordpiece(), {"digest": name})


def mixture(configs: list[SourceConfig], stages: tuple[StageConfig, ...] = (), shard: Shard | None = None) -> Mixture:
    shard = shard or stories(4)
    return Mixture(tuple(Source(config, dataset(shard, config.path)) for config in configs), stages)


def of(*weights: float, **more: object) -> list[SourceConfig]:
    return [SourceConfig("abc"[n], weight, **more) for n, weight in enumerate(weights)]  # type: ignore[arg-type]


def constant(*chances: float, limits: tuple[int, ...] = (), seed: int = 1) -> Picks:
    made = np.array(chances)
    return Picks(lambda rows: np.broadcast_to(made, (len(rows), len(made))),
                 np.array(limits or [FREE] * len(made)), seed)  # fmt: skip


# ---- which source a row is of


def test_any_slice_of_rows_is_that_of_one_pass_whatever_was_asked_before():
    whole = [part.tolist() for part in constant(0.5, 0.3, 0.2).rows(0, 3 * BLOCK)]
    for first, last in ((2 * BLOCK - 5, 2 * BLOCK + 5), (7, 8), (0, BLOCK), (BLOCK, 2 * BLOCK + 1)):
        fresh = [part.tolist() for part in constant(0.5, 0.3, 0.2).rows(first, last)]
        assert fresh == [part[first:last] for part in whole]
    assert constant(0.5, 0.3, 0.2, seed=2).rows(0, 99)[0].tolist() != whole[0][:99]


def test_each_source_gives_its_rows_in_order_each_once():
    sources, places = constant(0.6, 0.4).rows(0, 2 * BLOCK + 77)
    for number in (0, 1):
        assert places[sources == number].tolist() == list(range(int((sources == number).sum())))
    assert constant(0.6, 0.4).counts(2 * BLOCK + 77).tolist() == np.bincount(sources).tolist()


@pytest.mark.parametrize("window", [(0, 500), (123_456, 126_456), (3 * BLOCK - 2_000, 3 * BLOCK + 2_000)])
def test_the_rows_of_any_window_are_drawn_by_the_chances(window):
    chances = np.array([0.7, 0.2, 0.1, 0.0])
    sources, _ = constant(*chances).rows(*window)
    n = window[1] - window[0]
    counts = np.bincount(sources, minlength=4)
    assert counts[3] == 0
    assert (np.abs(counts - n * chances) <= DEVIATIONS * np.sqrt(n * chances * (1 - chances))).all()
    wrong = np.array([0.6, 0.3, 0.1, 0.0])  # the control
    off = np.abs(counts - n * wrong) > DEVIATIONS * np.sqrt(n * wrong * (1 - wrong))
    assert off.any() or n < 1000


def test_draws_side_by_side_have_nothing_to_do_with_each_other():
    sources, _ = constant(0.5, 0.5).rows(0, 100_000)
    for lag in (1, 2, 8, 64):
        agreed = float((sources[lag:] == sources[:-lag]).mean())
        assert abs(agreed - 0.5) < DEVIATIONS * 0.5 / np.sqrt(100_000)


def test_a_spent_source_is_drawn_no_more_and_the_others_share_its_part():
    sources, places = constant(0.5, 0.3, 0.2, limits=(1000, FREE, FREE)).rows(0, 20_000)
    assert (sources == 0).sum() == 1000 and places[sources == 0].max() == 999
    after = sources[int(np.flatnonzero(sources == 0)[-1]) + 1 :]
    share, n = float((after == 1).mean()), len(after)
    assert abs(share - 0.6) < DEVIATIONS * np.sqrt(0.24 / n)  # 3 : 2
    before = constant(0.5, 0.3, 0.2).rows(0, 20_000)[0]
    last = int(np.flatnonzero(sources == 0)[-1])
    assert sources[: last + 1].tolist() == before[: last + 1].tolist()  # until then nothing is different


def test_sources_that_do_not_last_are_refused_with_the_row():
    picks = constant(0.5, 0.5, limits=(3_000, 20_000))
    assert picks.counts(23_000).tolist() == [3_000, 20_000]
    with pytest.raises(DataError, match=r"to read row 23,000 from, .*raise max_epochs, or train for fewer steps"):
        constant(0.5, 0.5, limits=(3_000, 20_000)).counts(23_001)
    with pytest.raises(DataError, match="to read row 23,000 from"):
        picks.rows(22_990, 23_010)
    assert picks.rows(22_990, 23_000)[1].max() == 19_999


# ---- shares of the tokens


def mixed_text(shards: dict[str, Shard], weights: list[float], rows: int, row_tokens: int) -> MixedBatches:
    """Masked rows, a document each, as long as it is: of any length up to the row."""
    tokenizer = wordpiece()
    configs = [SourceConfig(name, weight) for name, weight in zip(shards, weights, strict=True)]
    batches = [
        MaskedBatches(
            Shard(name, shard.tokens, shard.starts), tokenizer, MaskingConfig(), row_tokens, rows, 1, "padded"
        )
        for name, shard in shards.items()
    ]
    sizes = [(one.rows_per_epoch, one.tokens_per_epoch) for one in batches]
    return MixedBatches(batches, mixture(configs).picks(sizes, rows, 1), rows, tokenizer.pad_id or 0)


def drawn(batches: MixedBatches, indices: range, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of text of each row, and whether it is of source `short`."""
    tokens, short = [], []
    for index in indices:
        batch = batches.batch(index)
        tokens.append((batch.tokens.doc != PADDING).sum(1).numpy() - frame)
        short += [name.startswith("short@") for name in batch.sample_ids]
    return np.concatenate(tokens), np.array(short)


def deviations(tokens: np.ndarray, mine: np.ndarray, share: float) -> float:
    """How many standard errors the tokens of `mine` are away from `share` of all."""
    excess = tokens * (mine - share)
    return float(abs(excess.mean()) / (excess.std() / np.sqrt(len(excess))))


def test_the_share_of_the_tokens_is_the_weight_in_any_window_though_rows_differ_in_length():
    shards = {"long": stories(6, 60), "short": stories(40, 2)}
    batches, frame = mixed_text(shards, [1.0, 3.0], 8, 64), 2
    means = [one.tokens_per_epoch / one.rows_per_epoch for one in batches.sources]
    assert means[0] > 2.5 * means[1]
    for window in (range(0, 120), range(500, 620), range(7_000, 7_120)):
        tokens, short = drawn(batches, window, frame)
        assert deviations(tokens, short, 0.75) < DEVIATIONS
        assert deviations(tokens, short, 0.9) > DEVIATIONS  # the control: it would tell another share
    naive = mixture([SourceConfig("long", 1.0), SourceConfig("short", 3.0)]).picks([(1, 1), (1, 1)], 8, 1)
    by_rows = MixedBatches(batches.sources, naive, 8, 0)  # the control: shares of the rows
    tokens, short = drawn(by_rows, range(120), frame)
    assert deviations(tokens, short, 0.75) > 2 * DEVIATIONS


def test_every_epoch_of_every_source_has_each_row_once_and_an_order_of_its_own():
    shard = shard_of([list(range(0, 200))])
    batches = [TextBatches(Shard(name, shard.tokens, shard.starts), 9, 4, seed) for name, seed in (("a", 5), ("b", 6))]
    mixed = MixedBatches(batches, constant(0.8, 0.2), 4, 0)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for index in range(60):
        for name in mixed.batch(index).sample_ids:
            source, _, start = name.partition("@")
            seen[source].append(int(start))
    n = batches[0].rows_per_epoch
    epochs = {name: [starts[at : at + n] for at in range(0, len(starts) - n + 1, n)] for name, starts in seen.items()}
    assert len(epochs["a"]) > 6 and len(epochs["b"]) > 1
    for name, starts in seen.items():
        assert all(len(set(epoch)) == n for epoch in epochs[name])
        whole = [start for index in range(len(starts) // 4 + 1) for start in batches["ab".index(name)].starts(
            np.arange(4 * index, 4 * index + 4)).tolist()]  # fmt: skip
        assert starts == whole[: len(starts)]  # as if it were alone
    assert epochs["a"][0] != epochs["a"][1] and epochs["a"][0] != epochs["b"][0]


# ---- stages


def test_shares_follow_the_stages_step_by_step():
    stages = (StageConfig(10, {"a": 1, "b": 3}), StageConfig(20, {"b": 5}, ramp_steps=4), StageConfig(25, {"a": 2}))
    found = mixture(of(1, 1), stages).shares_at(np.arange(40))[:, 0].tolist()
    ramp = [0.25, 0.1875, 0.125, 0.0625]
    assert found == pytest.approx([0.5] * 10 + [0.25] * 10 + ramp + [0.0] + [1.0] * 15, abs=1e-12)
    assert mixture(of(1, 3), (StageConfig(0, {"a": 1}),)).shares_at(np.arange(3))[:, 0].tolist() == [1, 1, 1]


def test_rows_are_drawn_by_the_stage_of_their_batch():
    stages = (StageConfig(100, {"b": 1}), StageConfig(200, {"a": 1}, ramp_steps=1000))
    picks = mixture(of(1, 0), stages).picks([(10, 10), (10, 10)], 8, 1)
    sources, _ = picks.rows(0, 1300 * 8)
    assert not sources[:800].any() and sources[800:1600].all() and not sources[1200 * 8 :].any()
    middle = sources[600 * 8 : 800 * 8]  # b from 0.6 down to 0.4
    assert abs(float(middle.mean()) - 0.5) < DEVIATIONS * 0.5 / np.sqrt(len(middle))


def test_a_plan_tells_tokens_and_epochs():
    sizes = [(100, 1000), (50, 2000)]
    (a, b) = planned(mixture(of(1, 3, max_epochs=2.0)), sizes, 30, 8, 1)
    rows = mixture(of(1, 3, max_epochs=2.0)).picks(sizes, 8, 1).counts(240).tolist()
    assert [a.rows, b.rows] == rows and b.rows == 100 and b.spent and not a.spent
    assert (a.tokens, b.tokens) == (rows[0] * 10, 4000) and b.epochs == 2.0 and a.epochs == rows[0] / 100
    assert a.share + b.share == pytest.approx(1) and (a.weight, b.weight) == (0.25, 0.75)


# ---- what is refused


def test_other_tokenizers_are_refused_by_both_names():
    other = Dataset(Path("out/b"), stories(2), stories(2), byte_level(), {"digest": "b"})
    with pytest.raises(DataError, match=r"one tokenizer, got out/a \(wordpiece, .*\) and out/b \(bpe, .*; build one"):
        Mixture((Source(SourceConfig("out/a"), dataset(stories(2), "out/a")), Source(SourceConfig("out/b"), other)))


@pytest.mark.parametrize(
    ("sources", "stages", "message"),
    [
        (of(1, 1)[:1] * 2, (), "each name once, got a twice; give one of them a `name`"),
        (of(0, 0), (), "a weight above 0"),
        (
            of(1, 1),
            (StageConfig(0, {"c": 1}),),
            r"stages\[0\].weights: expected names of sources, got 'c'; known: a, b",
        ),
        ([], (StageConfig(0, {"c": 1}),), "set data.mixture"),
        (
            of(1),
            (StageConfig(5, {"a": 1}, 5), StageConfig(10, {"a": 1})),
            r"stages\[1\].from_step: expected at least 11",
        ),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(sources, stages, message):
    with pytest.raises(ConfigError, match=message):
        check_mixture(sources, stages)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"mixture": [{"path": "a", "weight": -1}]}, r"mixture\[0\]: weight: expected 0 to 1e9, got -1"),
        ({"mixture": [{"weight": 1}]}, r"mixture\[0\].path: expected a value"),
        ({"mixture": [{"path": "a", "name": "x/y"}]}, "name: expected a word"),
        ({"path": "b", "mixture": [{"path": "a"}]}, "data.path: expected none beside data.mixture"),
        ({"mixture": [{"path": "a"}], "stages": [{"weights": {"a": 0}}]}, "one above 0"),
    ],
)
def test_a_mixture_is_checked_as_it_is_read(raw, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(TextDataConfig, raw)


def test_the_digest_covers_sources_weights_limits_and_stages():
    shard, other = stories(4), stories(5)
    base = mixture(of(1, 2), shard=shard)
    others = [
        mixture(of(1, 3), shard=shard),
        mixture(of(1, 2, max_epochs=1.0), shard=shard),
        mixture(of(1, 2), (StageConfig(5, {"a": 1}),), shard),
        mixture(of(1, 2, 3)[:2][::-1], shard=shard),
        Mixture((base.sources[0], Source(base.sources[1].config, dataset(other, "b")))),
    ]
    digests = [one.digest for one in (base, *others)]
    assert len(set(digests)) == len(digests) and mixture(of(1, 2), shard=stories(4)).digest == base.digest
