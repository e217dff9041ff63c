"""`data inspect` shows what is trained on: rows are those of the shard, with its borders, targets and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge.cli.main import main
from fledge.data.build import build
from fledge.data.config import BuildConfig
from fledge.data.shards import open_shards
from fledge.errors import ConfigError
from fledge.recipes.config import InspectConfig
from fledge.recipes.inspect import inspect_data
from fledge.train.config import TrainConfig
from tests.data.folders import essay, held_out_names, make

FILES = {name: essay(n, 30 + n) for n, name in enumerate(held_out_names(False, 20))}
FILES |= {name: essay(60 + n) for n, name in enumerate(held_out_names(True, 1))}
T = 96


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    build(BuildConfig(folder / "out", make(folder / "in", FILES), "bytes"), json=True)
    return folder / "out"


def row_of(dataset: Path, row: int = 0, **options) -> dict:
    config = InspectConfig(path=str(dataset), row=row, train=TrainConfig(row_tokens=T, rows=4), **options)
    return inspect_data(config, json=True)["row"]


@pytest.mark.parametrize("row", [0, 5, 23])
def test_a_causal_row_is_a_window_of_the_shard_with_its_borders(dataset, row):
    shard = open_shards(dataset).train
    found = row_of(dataset, row)
    start = int(found["from"].removeprefix("train@"))
    columns = found["parts"][""]
    assert columns["ids"] == shard.tokens[start : start + T].tolist()
    assert columns["targets"] == shard.tokens[start + 1 : start + T + 1].tolist()
    inside = [max(int(s) for s in shard.starts if s <= start + n) for n in range(T + 1)]  # where its document begins
    assert columns["positions"] == [start + n - max(inside[n], start) for n in range(T)]
    assert columns["weights"] == [float(inside[n] == inside[n + 1]) for n in range(T)]
    assert [a != b for a, b in zip(columns["documents"], columns["documents"][1:], strict=False)] == [
        inside[n] != inside[n + 1] for n in range(T - 1)
    ]
    assert len({row_of(dataset, n)["from"] for n in range(8)}) == 8, "rows differ"


def test_masked_tokens_have_weight_and_the_others_stand_as_they_are(dataset):
    columns = row_of(dataset, 3, objective="masked")["parts"][""]
    trained = [n for n, weight in enumerate(columns["weights"]) if weight]
    assert 0 < len(trained) < T // 2
    assert all(columns["ids"][n] == columns["targets"][n] for n in range(T) if n not in trained)
    assert any(columns["pieces"][n] == "[MASK]" and columns["target_pieces"][n] != "[MASK]" for n in trained)


def test_spans_have_a_source_and_a_target_that_fit_together(dataset):
    found = row_of(dataset, 1, objective="spans")["parts"]
    assert "<extra_id_0>" in found["source"]["pieces"] and "<extra_id_0>" in found["target"]["target_pieces"]
    assert found["target"]["ids"][1:] == found["target"]["targets"][:-1]


def test_validation_rows_are_in_their_order_and_end(dataset):
    assert row_of(dataset, 0, split="val")["from"] == "val@0"
    assert row_of(dataset, 2, split="val")["from"] == f"val@{2 * T}"
    with pytest.raises(ConfigError, match=r"row: expected 0\.\.\d+ of the validation's rows, got 100000"):
        row_of(dataset, 100_000, split="val")


def test_documents_and_the_row_are_printed(dataset, capsys):
    assert main(["data", "inspect", str(dataset), "--documents", "2", "--tokens", "3", "train.row_tokens=96"]) == 0
    printed = capsys.readouterr().out
    first = next(iter(sorted(name for name in FILES if name not in held_out_names(True, 1))))
    assert f"{first}  (" in printed and FILES[first][:60] in printed
    assert "row 0 of objective causal, from train@" in printed and "… 93 more tokens" in printed


def test_a_source_shows_its_documents_and_bad_rows(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"text": "one"}\ntorn\n{"text": "two"}\n{"text": "three"}\n')
    assert main(["data", "inspect", str(tmp_path / "x.jsonl"), "--documents", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["begins"] for row in found["documents"]] == ["one", "two"]
    assert "line 2: not JSON" in found["bad_rows_so_far"][0]
    with pytest.raises(ConfigError, match="path: expected a folder or a source"):
        inspect_data(InspectConfig(), json=True)
