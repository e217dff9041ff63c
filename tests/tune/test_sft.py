"""`fledge sft` of an adapter: the base stays, a stop loses nothing, and what is trained is what is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers

from fledge import lineage
from fledge.batch import OneDocument, one_document
from fledge.cli.main import main
from fledge.engine.load import load_engine
from fledge.engine.loaded import load
from fledge.errors import CheckpointError, Interrupted, NonFiniteError
from fledge.evals.config import EvaluateConfig
from fledge.evals.run import evaluate
from fledge.model.folder import load_model
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.recipes.sft import sft
from fledge.text.tokenizer import byte_level
from fledge.train.checkpointing import check_finite
from fledge.tune.folder import load_adapter
from tests.tune.running import TUNING, config_for, made_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return made_place(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def trained(place):
    """The run of an adapter, whole."""
    sft(config_for(place, place / "run"))
    return place / "run"


def weights(run: Path) -> bytes:
    return (run / "model/adapter_model.safetensors").read_bytes()


def test_a_run_publishes_an_adapter_alone_and_leaves_its_base_as_it_was(place, trained):
    names = {path.name for path in (trained / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "card.json"} <= names
    assert "model.safetensors" not in names and len(weights(trained)) < 40_000
    card = lineage.verify(trained / "model")
    assert card["kind"] == "adapter" and card["parents"]["base"] == lineage.artefact_digest(place / "base")
    lineage.verify(place / "base")
    events = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["kind"] == "step"]
    assert losses[-1] < losses[0] - 0.3  # it learns


DORA = {**TUNING, "dora": True, "targets": ["all-linear"]}


@pytest.mark.parametrize(
    "tune",
    [TUNING, pytest.param(DORA, marks=pytest.mark.slow), pytest.param({"method": "ia3"}, marks=pytest.mark.slow)],
    ids=["lora", "dora", "ia3"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(place, tmp_path, tune):
    sft(config_for(place, tmp_path / "whole", tune))
    with pytest.raises(Interrupted):
        sft(config_for(place, tmp_path / "stopped", tune, stop_after_steps=7))
    sft(config_for(place, tmp_path / "stopped", tune))
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_dropout_of_an_adapter_is_drawn_by_step_so_that_the_state_of_no_generator_counts(place, trained, tmp_path):
    torch.manual_seed(12345)
    sft(config_for(place, tmp_path / "again"))
    assert weights(tmp_path / "again") == weights(trained)
    sft(config_for(place, tmp_path / "none", {**TUNING, "dropout": 0.0}))  # the control: other bits show
    assert weights(tmp_path / "none") != weights(trained)


def greedy(step, ids: list[int], n_tokens: int) -> list[int]:
    found = list(ids)
    for _ in range(n_tokens):
        found.append(int(step(torch.tensor([found]))[0, -1].argmax()))
    return found[len(ids) :]


@torch.no_grad()
def test_what_was_trained_is_what_is_served(place, trained, tmp_path):
    """Greedy tokens of base and adapter in training's own pass, of the engine on the adapter folder and on the merged
    model, and of PEFT."""
    prompt = load(trained).chat_ids("say 2")
    own = load_adapter(load_model(place / "base"), trained, place / "base")
    wanted = greedy(lambda ids: own(one_document(ids), OneDocument()), prompt, 12)
    assert main(["merge", str(place / "base"), str(trained), "--out", str(tmp_path / "merged")]) == 0
    for folder in (trained, trained / "model", tmp_path / "merged"):
        served = load(folder).complete(prompt, max_tokens=12, temperature=0, ignore_eos=True)[0]
        assert list(served.token_ids) == wanted
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, trained / "model").eval()
    assert greedy(lambda ids: theirs(ids).logits, prompt, 12) == wanted
    base = load_model(place / "base")  # the control
    assert greedy(lambda ids: base(one_document(ids), OneDocument()), prompt, 12) != wanted


def test_the_verbs_of_a_model_take_an_adapter_folder(trained, place, capsys):
    assert main(["generate", str(trained), "--prompt", "say 2", "--max-tokens", "4", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("say 2")
    _, tokenizer, stops = load_engine_parts(trained)
    assert tokenizer.digest == byte_level().digest and stops


def load_engine_parts(folder):
    from fledge.engine.runner import load_runner

    assert load_engine(str(folder)) is not None
    return load_runner(folder)


def test_a_finished_run_is_not_repeated_and_another_config_is_refused(place, trained, capsys):
    before = (trained / "model/adapter_model.safetensors").stat().st_mtime_ns
    sft(config_for(place, trained))
    assert (trained / "model/adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match=r"tune\.rank: was 4, is 5"):
        sft(config_for(place, trained, {**TUNING, "rank": 5}))


def test_a_checkpoint_of_another_adapter_is_refused(place, tmp_path):
    with pytest.raises(Interrupted):
        sft(config_for(place, tmp_path / "run", stop_after_steps=4))
    with pytest.raises(CheckpointError, match="expected"):
        sft(config_for(place, tmp_path / "run", {**TUNING, "rank": 6}, allow_changes=True))


def test_an_adapter_that_is_not_finite_is_not_written_into_a_checkpoint(trained, tmp_path):
    shutil.copytree(trained / "model", tmp_path / "model")
    check_finite(tmp_path / "model")  # the control
    path = tmp_path / "model/adapter_model.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {name: file.read(name) for name in file.entries}
    next(iter(tensors.values()))[0, 0] = float("nan")
    write_safetensors(path, tensors)
    with pytest.raises(NonFiniteError, match="lora_A.weight: not finite"):
        check_finite(tmp_path / "model")


def test_an_adapter_is_evaluated_as_its_merged_model_is(place, trained, tmp_path):
    text = tmp_path / "held-out.txt"
    text.write_text("say 2 and say 3 and say 1. " * 12)
    assert main(["merge", str(place / "base"), str(trained), "--out", str(tmp_path / "merged")]) == 0
    folders = {"adapter": trained, "merged": tmp_path / "merged", "base": place / "base"}
    bits = {n: evaluate(EvaluateConfig(folder, text), json=True)["bits_per_byte"] for n, folder in folders.items()}
    assert bits["adapter"] == pytest.approx(bits["merged"], rel=1e-5)
    assert bits["adapter"] != pytest.approx(bits["base"], rel=1e-3)  # the control
