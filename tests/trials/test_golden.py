"""Trial 16: the artefacts of each earlier release open, and its runs go on to the losses that it recorded."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch

import fledge
from fledge.errors import CheckpointError
from fledge.lineage import read_card, verify, write_card
from fledge.model.safetensors_file import write_safetensors
from fledge.train.checkpointing import newest_valid
from tests.golden import make
from tests.train.saved import read_optimizer

RELEASES = sorted(path.name for path in make.HERE.iterdir() if (path / "expected.json").is_file())


@pytest.fixture
def at(tmp_path):
    """A function that copies a release's artefacts, goes there and gives what was recorded of them."""
    with contextlib.ExitStack() as stack:

        def go(release: str) -> dict:
            shutil.copytree(make.HERE / release, tmp_path / release)
            stack.enter_context(contextlib.chdir(tmp_path / release))
            return json.loads(Path("expected.json").read_text(encoding="utf-8"))

        yield go


def test_this_release_has_its_golden_artefacts():
    assert fledge.__version__ in RELEASES, "run: python -m tests.golden.make"


@pytest.mark.parametrize("release", RELEASES)
def test_trial_16_tokenizer_dataset_and_model_of_a_release_say_the_same(at, release):
    wanted = at(release)
    from fledge.data.shards import open_shards
    from fledge.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load("tokenizer")
    assert list(tokenizer.encode(make.SAMPLE)) == wanted["tokenizer"]["ids"]
    assert tokenizer.decode(wanted["tokenizer"]["ids"]) == make.SAMPLE
    dataset = open_shards(Path("dataset"))
    dataset.check()
    assert dataset.digest == wanted["dataset"]["digest"]
    for split, tokens in wanted["dataset"]["tokens"].items():
        assert list(map(int, getattr(dataset, split).tokens[:50])) == tokens
    for folder in ("tokenizer", "dataset", "model"):
        verify(folder)
    assert make.model_logits(Path("model")) == pytest.approx(wanted["model"], abs=1e-5)


@pytest.mark.parametrize("run", make.RUNS)
@pytest.mark.parametrize("release", RELEASES)
def test_trial_16_a_run_of_a_release_goes_on_to_the_recorded_losses(at, release, run):
    wanted = at(release)["runs"][run]
    assert make.going_on(run) == {
        key: pytest.approx(value, rel=1e-4) for key, value in wanted.items()
    }  # other versions of torch sum in another order


def test_trial_16_a_run_that_forgot_its_moments_would_miss_them(at):
    """The control."""
    release = RELEASES[-1]
    wanted = at(release)["runs"]["decoder"]
    folder, _ = newest_valid(Path("decoder/checkpoints")) or pytest.fail("none")
    moments = {name: torch.zeros_like(tensor) for name, tensor in read_optimizer(folder).items()}
    write_safetensors(folder / "optimizer.safetensors", moments)
    card = read_card(folder)
    write_card(folder, "checkpoint", card["parents"], card["config"])
    assert make.going_on("decoder")["losses"] != pytest.approx(wanted["losses"], rel=1e-4)


def test_trial_16_a_checkpoint_of_the_future_is_refused_clearly(at):
    at(RELEASES[-1])
    folder, _ = newest_valid(Path("decoder/checkpoints")) or pytest.fail("none")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 99}))
    card = read_card(folder)
    write_card(folder, "checkpoint", card["parents"], card["config"])
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        newest_valid(Path("decoder/checkpoints"))
    assert make.main(["pretrain", "decoder/run.yaml"]) == 1
