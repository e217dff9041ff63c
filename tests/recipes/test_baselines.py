"""`fledge baselines`: counting models on the same held-out targets as the run's validation."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from fledge.data.shards import open_shards
from fledge.errors import CheckpointError, ConfigError
from fledge.evals.neighbours import Neighbours
from fledge.recipes.baselines import baselines
from fledge.recipes.config import BaselinesConfig
from fledge.recipes.pretrain import pretrain
from tests.data.corrupted import story, wordpiece
from tests.recipes.objectives import config_of


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("text")
    (root / "text").mkdir()
    for number in range(8):
        (root / "text" / f"{number}.txt").write_text(story(number, 60))
    wordpiece().save(root / "tokenizer")
    return {"path": str(root / "text"), "tokenizer": str(root / "tokenizer")}


def finished(objective: str, family: str, data: dict[str, str], folder) -> tuple[dict, dict]:
    config = config_of(objective, family, data=data, run={"dir": str(folder)}, infill={"rate": 0.0}, train={"steps": 2})
    result = pretrain(config)
    return result, baselines(BaselinesConfig(folder, batches=20), json=True)


def test_a_causal_run_beside_unigram_and_bigram_counted_with_dictionaries(data, tmp_path):
    result, found = finished("causal", "gpt2", data, tmp_path / "run")
    assert found["targets"] == result["val_tokens"] and found["model"]["val_loss"] == result["val_loss"]
    shards = open_shards(tmp_path / "run" / "data")
    texts = [
        shards.train.tokens[a:b].tolist() for a, b in zip(shards.train.starts, shards.train.starts[1:], strict=False)
    ]
    single = Counter(token for text in texts for token in text)
    pairs = Counter(pair for text in texts for pair in zip(text, text[1:], strict=False))
    contexts, kinds = Counter(), Counter(a for a, _ in pairs)
    for (a, _), count in pairs.items():
        contexts[a] += count
    unigram = bigram = right = targets = 0.0
    vocabulary = wordpiece().vocab_size
    for start, stop in zip(shards.val.starts, shards.val.starts[1:], strict=False):
        ids = shards.val.tokens[start:stop].tolist()
        for a, b in zip(ids, ids[1:], strict=False):
            frequency = (single[b] + 1) / (sum(single.values()) + vocabulary)
            p = (pairs[a, b] + kinds[a] * frequency) / (contexts[a] + kinds[a]) if contexts[a] else frequency
            unigram, bigram, targets = unigram - math.log(frequency), bigram - math.log(p), targets + 1
            most = max((n for (x, _), n in pairs.items() if x == a), default=0)
            right += most > 0 and b == min(y for (x, y), n in pairs.items() if x == a and n == most)
    assert targets == found["targets"]
    assert found["unigram_loss"] == pytest.approx(unigram / targets)
    assert found["bigram_loss"] == pytest.approx(bigram / targets)
    assert found["bigram_accuracy"] == pytest.approx(right / targets)
    assert found["bigram_loss"] < found["unigram_loss"] < math.log(vocabulary)


@pytest.mark.parametrize(
    ("objective", "family", "better"), [("masked+next", "bert", "neighbours"), ("spans", "t5", "bigram")]
)
def test_masked_tokens_and_spans_are_told_better_by_what_stands_beside_them(objective, family, better, data, tmp_path):
    result, found = finished(objective, family, data, tmp_path / "run")
    assert found["targets"] == result["val_tokens"]
    assert found[f"{better}_loss"] < found["unigram_loss"] - 0.2
    assert found[f"{better}_accuracy"] > found["unigram_accuracy"]


def test_the_neighbours_are_those_of_the_corrupted_row(data, tmp_path, monkeypatch):
    """The control: neighbours in the wrong order are another model."""
    _, found = finished("masked", "bert", data, tmp_path / "run")
    real = Neighbours.probability
    monkeypatch.setattr(Neighbours, "probability", lambda self, left, token, right: real(self, right, token, left))
    turned = baselines(BaselinesConfig(tmp_path / "run"), json=True)
    assert turned["neighbours_loss"] > found["neighbours_loss"] + 0.1


def test_a_run_that_is_not_finished_or_whose_data_changed_is_refused(data, tmp_path):
    with pytest.raises(CheckpointError, match="expected a finished run"):
        baselines(BaselinesConfig(tmp_path / "none"), json=True)
    with pytest.raises(ConfigError, match="batches"):
        BaselinesConfig(tmp_path, batches=0)
