"""What people prefer is what is trained on: from votes through the export to the losses of a run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fledge.config import from_dict
from fledge.label.blind import A, B, swapped
from fledge.label.config import LabelExportConfig
from fledge.label.desk import Ballot
from fledge.label.export import export_labels
from fledge.recipes.align import align_dpo
from fledge.recipes.preference_config import AlignRewardConfig
from fledge.recipes.reward import align_reward
from tests.align.running import config_for, made_place, raw_config, steps_of
from tests.label.samples import Desk, make_labels, read_items, write_rows


def losses(place, pairs, run):
    config = config_for(place, place / run, steps=3)
    align_dpo(replace(config, data=replace(config.data, path=place / pairs)))
    return [step["loss"] for step in steps_of(place / run)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, pairs of which somebody preferred what the file rejects, and the export of that."""
    folder = made_place(tmp_path_factory.mktemp("labelled"), n_pairs=16)
    items = read_items(folder / "pairs.jsonl")
    desk = Desk(make_labels(str(folder / "labels.db"), items, "pairs.jsonl", 1))
    for number in range(1, len(items.found) + 1):
        second = A if swapped("1", "ana", number) else B
        desk.vote(Ballot("ana", number, second, f"token{number}"))
    desk.store.close()
    export_labels(LabelExportConfig(str(folder / "labels.db"), folder / "labelled.jsonl"))
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    turned = [{"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    write_rows(folder / "turned.jsonl", turned)
    return folder


def test_a_run_on_the_export_is_a_run_on_what_was_preferred(place):
    labelled = losses(place, "labelled.jsonl", "a")
    assert labelled == losses(place, "turned.jsonl", "b")
    assert labelled != losses(place, "pairs.jsonl", "c")  # the control: the file's own preference


def test_a_reward_model_reads_the_export(place):
    config = from_dict(AlignRewardConfig, raw_config(place, place / "reward", steps=2))
    result = align_reward(replace(config, data=replace(config.data, path=place / "labelled.jsonl")))
    assert result["held_out"]["accuracy"]["n"] == 4
