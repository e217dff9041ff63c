"""Publishing under failing disks: the old model stays, nothing is left over, and the error says what to do."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fledge import lineage
from fledge.device import Device
from fledge.errors import CheckpointError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.recipes import publish as publishing
from fledge.recipes.publish import mend, publish


def a_run(seed: int = 1) -> Any:
    shape = ShapeConfig("llama", width=16, layers=1, heads=2, context_tokens=32, vocab_size=20)
    model = initialise(build(family("llama").build(shape), "cpu"), seed)
    recipe = SimpleNamespace(model=model, data_digest="d", save=lambda path: save_model(model, path, card=False))
    return SimpleNamespace(recipe=recipe, config={}, device=Device(torch.device("cpu"), torch.float32, 1))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_published_model_verifies_and_its_card_is_strict_json(tmp_path):
    publish(tmp_path, a_run(), {"steps": 3, "val_loss": float("nan")})
    card = lineage.verify(tmp_path / "model")
    assert card["facts"]["result"] == {"steps": 3, "val_loss": "nan"}

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((tmp_path / "model" / "card.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_model_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, where):
    publish(tmp_path, a_run(), {"steps": 3})
    before = lineage.verify(tmp_path / "model")
    run, replace = a_run(2), publishing.os.replace

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def second_fails(source: Path, target: Path) -> None:
        if Path(source).name.startswith(".new-model-"):
            full()
        replace(source, target)

    with monkeypatch.context() as patch:
        if where == "write":
            run.recipe.save = full
        else:
            patch.setattr(publishing.os, "replace", second_fails)
        with pytest.raises(CheckpointError, match=r"model: can't be written \(No space left on device\)"):
            publish(tmp_path, run, {"steps": 4})
    assert lineage.verify(tmp_path / "model") == before and names(tmp_path) == ["model"]
    publish(tmp_path, a_run(2), {"steps": 4})  # the control: with space it goes
    assert lineage.verify(tmp_path / "model") != before and names(tmp_path) == ["model"]


def test_a_model_that_was_set_aside_comes_back_only_where_there_is_no_other(tmp_path):
    (tmp_path / ".old-model-7").mkdir()
    (tmp_path / ".old-model-7" / "a").write_text("old")
    mend(tmp_path)
    assert names(tmp_path) == ["model"]
    (tmp_path / ".old-model-8").mkdir()
    mend(tmp_path)
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "a").read_text() == "old"
