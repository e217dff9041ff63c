"""Adapters beside a task head that is trained whole: PEFT's modules to save, and head.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from fledge.cli.main import main
from fledge.engine.config import PredictConfig
from fledge.engine.encoder import load_encoder
from fledge.engine.predict import batches_of, kind_of, predict, reader_of
from fledge.engine.purpose import purpose_of
from fledge.errors import CheckpointError, ConfigError, FledgeError, Interrupted
from fledge.lineage import verify
from fledge.model.folder import load_model
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.recipes.finetune import finetune, rows_of
from fledge.recipes.merge import merge_adapter
from fledge.tune.config import MergeConfig, TuneConfig
from fledge.tune.load import load_served, served_tokenizer
from tests.data.corrupted import wordpiece
from tests.recipes.test_finetune import CLASSES, TRAIN, config_of, rows, their_inputs
from tests.recipes.test_finetune import base as base  # the fixture

METHODS = {
    "lora": TuneConfig("lora", rank=4),
    "dora": TuneConfig("lora", rank=4, dora=True, targets=("all-linear",)),
    "ia3": TuneConfig("ia3"),
    "houlsby": TuneConfig("houlsby", bottleneck=8),
}


@pytest.mark.parametrize(
    ("task", "method"),
    [("sequence", "lora"), ("token", "dora"), ("span", "ia3"), ("regression", "lora"), ("choice", "lora")],
)
def test_peft_gives_the_logits_of_the_published_folder(base, tmp_path, task, method):
    config = config_of(base, tmp_path, task, tune=METHODS[method])
    result = finetune(config)
    folder = Path(result["model"])
    assert (folder / "head.json").is_file() and not (folder / "config.json").exists()
    model = load_served(folder).eval()
    kind = kind_of(model.config)
    labels = {"id2label": dict(enumerate(kind.names))} if kind.names else {"num_labels": 1 if task != "span" else 2}
    if task == "choice":
        labels = {}
    theirs = getattr(transformers, CLASSES[task]).from_pretrained(base, **labels)
    theirs = peft.PeftModel.from_pretrained(theirs, folder).eval()
    _, held = rows_of(config)
    by_place = {f"{config.data.path}, line {n}": row for n, row in enumerate(rows(task), 1)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        out = theirs(**their_inputs(tokenizer, task, [by_place[example.place] for example in held], kind.names))
        batch = batches_of(reader_of(model.config, wordpiece(), 0, kind), kind, held, rows=9).in_order(0, len(held))
        logits = model.head(kind.head, batch.tokens, batch.layout)
    wanted = torch.stack([out.start_logits, out.end_logits], -1) if task == "span" else out.logits
    got = logits.reshape(wanted.shape) if task == "choice" else logits
    there = batch.tokens.doc >= 0 if task in ("token", "span") else ...
    assert (got[there] - wanted[there]).abs().max() <= 2e-5 * max(1.0, float(wanted.abs().max()))
    plain = load_model(base)  # the control: the base's own weights did not move
    assert torch.equal(plain.embedding.weight, model.embedding.weight)
    assert verify(folder)["kind"] == "adapter" and result["scores"]


def stopped_as_straight(base: Path, place: Path, how: TuneConfig) -> dict[str, Any]:
    """A run that is stopped after three steps and goes on writes the file of one that isn't; another seed's differs.
    Gives the stopped run's result."""
    results = []
    for name, seed in (("straight", TRAIN.seed), ("stopped", TRAIN.seed), ("other", TRAIN.seed + 1)):
        (place / name).mkdir()
        config = config_of(base, place / name, "sequence", tune=how)
        config = replace(config, train=replace(TRAIN, seed=seed))
        if name == "stopped":
            with pytest.raises(Interrupted):
                finetune(replace(config, train=replace(TRAIN, stop_after_steps=3)))
        results.append(finetune(config))
    straight, stopped, other = (Path(one["model"], "adapter_model.safetensors").read_bytes() for one in results)
    assert straight == stopped
    assert straight != other  # the control
    return results[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_to_the_same_bits(base, tmp_path, method):
    stopped = stopped_as_straight(base, tmp_path, METHODS[method])
    assert kind_of(load_served(stopped["model"]).config).names == ("blue", "green", "red")


def test_the_verbs_tune_and_answer_and_a_damaged_head_is_refused(base, tmp_path, capfd):
    config = config_of(base, tmp_path, "sequence")
    words = ["finetune", f"model.path={base}", f"data.path={config.data.path}", "train.steps=3", "train.rows=4",
             "tune.method=lora", f"run.dir={tmp_path / 'run'}", "--json"]  # fmt: skip
    assert main(words) == 0
    capfd.readouterr()
    assert main(["predict", str(tmp_path / "run"), "the dog", "--pair", "why", "--json"]) == 0
    (answer,) = json.loads(capfd.readouterr().out.splitlines()[-1])["answers"]
    assert answer["label"] in ("red", "blue", "green")
    folder = tmp_path / "run" / "model"
    (folder / "card.json").unlink(missing_ok=True)
    whole = (folder / "head.json").read_text()
    for bad in ("{}", "[]", whole.replace('"sequence"', '"lm"'), whole.replace('"red"', "3"), "{"):
        (folder / "head.json").write_text(bad)
        with pytest.raises(FledgeError):
            load_served(folder)
    (folder / "head.json").write_text(whole.replace('"red"', '"red", "grey"'))
    with pytest.raises(CheckpointError, match="it is of another head"):
        load_served(folder)
    (folder / "head.json").unlink()  # the base's own heads are others
    with pytest.raises((CheckpointError, ConfigError)):
        load_served(folder)
    (folder / "head.json").write_text(whole)
    with SafetensorsFile(folder / "adapter_model.safetensors") as file:
        tensors = {name: file.read(name) for name in file.entries}
    some = {name: tensor for name, tensor in tensors.items() if not name.endswith("classifier.bias")}
    write_safetensors(folder / "adapter_model.safetensors", some)
    with pytest.raises(CheckpointError, match="expected all tensors of the task head"):
        load_served(folder)
    bad_numbers = {n: t * float("nan") if n.endswith("classifier.bias") else t for n, t in tensors.items()}
    write_safetensors(folder / "adapter_model.safetensors", bad_numbers)
    with pytest.raises(CheckpointError, match="finite"):
        load_served(folder)


def test_a_folder_of_adapter_and_head_is_served_for_its_labels(base, tmp_path):
    folder = Path(finetune(config_of(base, tmp_path, "sequence", tune=METHODS["lora"]))["model"])
    encoder, words = load_encoder(folder), served_tokenizer(folder)
    assert (encoder.facts["purpose"], encoder.facts["labels"]) == ("classify", ["blue", "green", "red"])
    (answer,) = predict(PredictConfig(str(folder), text="the dog"), json=True)["answers"]
    found = encoder.numbers([list(words.frame(words.encode("the dog")).ids)]).softmax(-1)[0].tolist()
    assert found == pytest.approx(list(answer["probabilities"].values()), abs=1e-6)
    (folder / "head.json").unlink()
    assert purpose_of(folder) == "embed"  # the control: the base is an encoder without a head
    for told, purpose in (
        ({"task": "token", "labels": ["O"]}, "token-classification"),
        ({"task": "span", "labels": 2}, "question-answering"),
        ({"task": "sequence", "labels": 1}, "score"),
        ({"task": "choice", "labels": 1}, "multiple-choice"),
    ):
        (folder / "head.json").write_text(json.dumps(told))
        assert purpose_of(folder) == purpose


@pytest.mark.parametrize(("task", "method"), [("sequence", "lora"), ("regression", "ia3")])
def test_an_adapter_and_its_head_are_merged_into_one_model(base, tmp_path, task, method):
    folder = Path(finetune(config_of(base, tmp_path, task, tune=METHODS[method]))["model"])
    merge_adapter(MergeConfig(base, folder, tmp_path / "merged"), json=True)
    own, merged = (
        predict(PredictConfig(str(one), text="the dog"), json=True)["answers"][0]
        for one in (folder, tmp_path / "merged")
    )
    assert own.keys() == merged.keys() and purpose_of(folder) == purpose_of(tmp_path / "merged")
    numbers = [list(one["probabilities"].values()) if task == "sequence" else [one["score"]] for one in (own, merged)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
    assert own.get("label") == merged.get("label")
