"""`data stats` counts what is there: against Python's own counters."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from fledge.cli.main import main
from fledge.data.build import build
from fledge.data.config import BuildConfig, StatsConfig
from fledge.data.scripts import Scripts
from fledge.data.stats import quantiles, stats
from fledge.errors import DataError
from tests.data.folders import essay, held_out_names, make

FILES = {name: essay(n, 200 + 300 * n) for n, name in enumerate(held_out_names(False, 9))}
FILES |= {name: essay(50 + n) for n, name in enumerate(held_out_names(True, 1))}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stats")
    more = make(folder / "more", {held_out_names(False, 12)[-1]: "Ещё текст. " * 40})
    build(BuildConfig(folder / "out", (make(folder / "in", FILES), more), "bytes"), json=True)
    return folder / "out"


def test_documents_bytes_and_tokens_are_counted_by_split_and_source(dataset):
    found = stats(StatsConfig(str(dataset), card=False), json=True)
    sizes = {name: len(text.encode()) for name, text in FILES.items()}
    [held_out] = held_out_names(True, 1)
    russian = len(("Ещё текст. " * 40).encode())
    trained = sum(sizes.values()) - sizes[held_out] + russian
    assert found["splits"]["train"] == {
        "documents": 10,
        "bytes": trained,
        "tokens": trained + 20,
        "bytes_per_token": round(trained / (trained + 20), 4),
    }
    assert (found["splits"]["val"]["documents"], found["splits"]["val"]["bytes"]) == (1, sizes[held_out])
    assert [row["bytes"] for row in found["sources"].values()] == [sum(sizes.values()), russian]
    everything = sorted([*sizes.values(), russian])
    assert found["document_bytes"]["0.5"] == everything[5] and found["document_bytes"]["1"] == everything[-1]
    assert sum(found["histogram"].values()) == 11
    assert found["histogram"] == {
        str(k): v for k, v in sorted(Counter(2 ** (n.bit_length() - 1) for n in everything).items())
    }


def test_frequent_and_unused_tokens_are_those_of_the_text(dataset):
    found = stats(StatsConfig(str(dataset), top=7, card=False), json=True)
    counts = Counter(b"".join(text.encode() for text in [*FILES.values(), "Ещё текст. " * 40]))
    assert [(row["id"], row["count"]) for row in found["frequent_tokens"]] == sorted(
        counts.items(), key=lambda item: (-item[1], item[0])
    )[:7]
    assert found["unused_tokens"] == 256 - len(counts)
    assert found["first_unused"][0] == "'\\x00'"


def test_the_figures_are_put_into_the_data_card_and_stay_there(dataset, capsys):
    before = (dataset / "datacard.md").read_text()
    assert "## Figures" not in before
    stats(StatsConfig(str(dataset), card=False), json=True)
    assert (dataset / "datacard.md").read_text() == before
    assert main(["data", "stats", str(dataset)]) == 0
    assert "most frequent tokens" in capsys.readouterr().out
    with_figures = (dataset / "datacard.md").read_text()
    assert with_figures.startswith(before) and "| train | 10 |" in with_figures
    sources = json.loads((dataset / "card.json").read_text())["config"]["source"]
    assert build(BuildConfig(dataset, tuple(sources), "bytes"), json=True)["reused_shards"]
    assert (dataset / "datacard.md").read_text() == with_figures


def test_a_source_is_counted_without_being_built(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "abc"}\n' * 30 + "torn\n" + '{"text": "a"}\n')
    found = stats(StatsConfig(str(tmp_path / "x.jsonl"), tokenizer="bytes"), json=True)
    assert found["splits"]["all"] == {"documents": 31, "bytes": 91, "tokens": 91, "bytes_per_token": 1.0}
    assert found["bad_rows"] == {"not JSON": 1}
    assert found["frequent_tokens"][0]["token"] == "'a'" and found["frequent_tokens"][0]["count"] == 31
    with pytest.raises(DataError, match="nowhere: expected a folder or file"):
        stats(StatsConfig(str(tmp_path / "nowhere")), json=True)


def test_quantiles_are_values_that_are_there():
    assert quantiles([5, 1, 9, 9]) == {"0": 1, "0.05": 1, "0.25": 1, "0.5": 5, "0.75": 9, "0.95": 9, "0.99": 9, "1": 9}
    assert quantiles([]) == {}


def test_scripts_are_told_by_their_letters():
    scripts = Scripts()
    scripts.add("abc, 123 äöü! " + "дом 東京 ひら")
    assert scripts.shares() == {"Latin": 0.4615, "Cyrillic": 0.2308, "Han": 0.1538, "Kana": 0.1538}
    assert Scripts().shares() == {}
