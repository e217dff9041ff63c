"""Task heads that PEFT saved beside an adapter on a bare model: read with its logits, or refused where parts
are missing."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers

from fledge.batch import OneDocument, one_document
from fledge.engine.predict import kind_of
from fledge.errors import CheckpointError
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.tune.load import load_served
from tests.parity.cases import model_of
from tests.parity.reference import limit, randomised, some_ids
from tests.tune.theirs import random_adapters

CLASSES = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
}
HEADS = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token", "QUESTION_ANS": "span"}
CASES = [
    ("bert", "SEQ_CLS", 3, ["query", "output.dense"], None),
    ("bert", "SEQ_CLS", 1, ["query"], None),
    ("bert", "TOKEN_CLS", 5, ["query", "value"], None),
    ("bert", "QUESTION_ANS", 2, ["key"], None),
    ("roberta", "SEQ_CLS", 4, ["query", "value"], None),
    ("distilbert", "SEQ_CLS", 3, ["q_lin"], ["pre_classifier", "classifier"]),
    ("modernbert", "SEQ_CLS", 3, ["Wqkv"], None),
    ("modernbert", "TOKEN_CLS", 3, ["Wo"], None),
    ("llama", "SEQ_CLS", 3, ["q_proj", "down_proj"], None),
    ("llama", "SEQ_CLS", 1, ["q_proj"], None),
]
IDS = [f"{name}-{task}-{labels}" for name, task, labels, _, _ in CASES]


def saved(
    place: Path, name: str, task: str, labels: int, targets: list[str], whole: list[str] | None, pooled: bool = True
) -> torch.nn.Module:
    """PEFT's model of a bare base in `place`/base, adapters and head random, saved to `place`/adapter."""
    bare = model_of(name)
    if name not in ("llama", "modernbert") and pooled:  # with the pooler that a published encoder has
        bare = randomised(transformers.AutoModel.from_config(bare.config))
    bare.save_pretrained(place / "base")
    words = {} if task == "QUESTION_ANS" else {"num_labels": labels}
    words |= {"pad_token_id": 0} if name == "llama" else {}
    model = CLASSES[task].from_pretrained(place / "base", **words)
    config = peft.LoraConfig(task_type=task, r=4, lora_alpha=6, target_modules=targets, modules_to_save=whole)
    made = random_adapters(peft.get_peft_model(model, config))
    with torch.no_grad():
        for path, parameter in made.named_parameters():
            if "modules_to_save" in path:
                parameter.normal_(0.0, 0.3)
    made.save_pretrained(place / "adapter")
    return made


@torch.no_grad()
def logits_of(model: torch.nn.Module, task: str) -> torch.Tensor:
    out = model(input_ids=some_ids(2))
    return torch.stack([out.start_logits, out.end_logits], -1) if task == "QUESTION_ANS" else out.logits


@pytest.mark.parametrize(("name", "task", "labels", "targets", "whole"), CASES, ids=IDS)
def test_a_head_that_peft_saved_answers_as_there(tmp_path, name, task, labels, targets, whole):
    torch.manual_seed(5)
    wanted = logits_of(saved(tmp_path, name, task, labels, targets, whole), task)
    model = load_served(tmp_path / "adapter").eval()
    with torch.no_grad():
        got = model.head(HEADS[task], one_document(some_ids(2)), OneDocument())
    assert (got.reshape(wanted.shape) - wanted).abs().max() <= limit(wanted)
    kind = kind_of(model.config)
    assert kind.task == ("regression" if (task, labels) == ("SEQ_CLS", 1) else HEADS[task])
    assert kind.names == (() if kind.task in ("span", "regression") else tuple(f"LABEL_{n}" for n in range(labels)))
    # the control: the head of another seed is not the saved one
    with SafetensorsFile(tmp_path / "adapter" / "adapter_model.safetensors") as file:
        tensors = {key: file.read(key) for key in file.entries}
    head = next(key for key in tensors if "lora" not in key and key.endswith("weight"))
    tensors[head] += 0.1
    write_safetensors(tmp_path / "adapter" / "adapter_model.safetensors", tensors)
    with torch.no_grad():
        moved = load_served(tmp_path / "adapter").eval().head(HEADS[task], one_document(some_ids(2)), OneDocument())
    assert (moved.reshape(wanted.shape) - wanted).abs().max() > 1e-3


def test_the_wrapped_class_tells_the_task_where_peft_names_none(tmp_path):
    made = saved(tmp_path, "bert", "TOKEN_CLS", 4, ["query"], None)
    wanted = logits_of(made, "TOKEN_CLS")
    path = tmp_path / "adapter" / "adapter_config.json"
    raw = json.loads(path.read_text())
    raw["task_type"], raw["auto_mapping"] = None, {"base_model_class": "BertForTokenClassification"}
    path.write_text(json.dumps(raw))
    with torch.no_grad():
        got = load_served(tmp_path / "adapter").eval().head("token", one_document(some_ids(2)), OneDocument())
    assert (got - wanted).abs().max() <= limit(wanted)
    path.write_text(json.dumps(raw | {"auto_mapping": ["BertForTokenClassification"]}))
    with pytest.raises(CheckpointError, match="classifier.*or its task_type"):  # nothing tells the task
        load_served(tmp_path / "adapter")


def test_a_head_that_neither_folder_has_whole_is_refused(tmp_path):
    """A masked LM has no pooler, and PEFT doesn't save the one that its classifier began with: it would be random."""
    saved(tmp_path, "bert", "SEQ_CLS", 3, ["query"], None, pooled=False)
    with pytest.raises(CheckpointError, match="pooler.*modules_to_save"):
        load_served(tmp_path / "adapter")
    # with it saved, the folder answers
    wanted = logits_of(saved(tmp_path, "bert", "SEQ_CLS", 3, ["query"], ["pooler", "classifier"], False), "SEQ_CLS")
    with torch.no_grad():
        got = load_served(tmp_path / "adapter").eval().head("sequence", one_document(some_ids(2)), OneDocument())
    assert (got - wanted).abs().max() <= limit(wanted)


def test_a_base_with_a_head_of_other_labels_takes_the_adapter_s(tmp_path):
    saved(tmp_path, "bert", "SEQ_CLS", 2, ["query"], None)
    two = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    randomised(two).save_pretrained(tmp_path / "base")
    three = CLASSES["SEQ_CLS"].from_pretrained(tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True)
    made = random_adapters(peft.get_peft_model(three, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])))
    made.save_pretrained(tmp_path / "adapter")
    wanted = logits_of(made, "SEQ_CLS")
    with torch.no_grad():
        got = load_served(tmp_path / "adapter").eval().head("sequence", one_document(some_ids(2)), OneDocument())
    assert got.shape == (2, 3) and (got - wanted).abs().max() <= limit(wanted)


def test_a_config_json_beside_an_adapter_makes_it_no_model(tmp_path):
    wanted = logits_of(saved(tmp_path, "bert", "SEQ_CLS", 3, ["query"], None), "SEQ_CLS")
    (tmp_path / "adapter" / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    with torch.no_grad():
        got = load_served(tmp_path / "adapter").eval().head("sequence", one_document(some_ids(2)), OneDocument())
    assert (got - wanted).abs().max() <= limit(wanted)


def test_a_head_without_rows_is_refused(tmp_path):
    saved(tmp_path, "bert", "SEQ_CLS", 3, ["query"], None)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {key: file.read(key) for key in file.entries}
    (weight,) = (key for key in tensors if key.endswith("classifier.weight"))
    tensors[weight] = tensors[weight][:0].clone()
    write_safetensors(path, tensors)
    with pytest.raises(CheckpointError, match="classifier.weight: expected 1 to .* labels, got 0"):
        load_served(tmp_path / "adapter")
