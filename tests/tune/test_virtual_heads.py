"""Virtual tokens beside a task head: PEFT's answers both ways where it has the same, transformers' own where it hasn't;
runs that go on, parts of a batch, and the verbs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from fledge.batch import OneDocument, one_document
from fledge.cli.main import main
from fledge.engine.predict import batches_of, kind_of, reader_of
from fledge.errors import CheckpointError, ConfigError
from fledge.lineage import verify
from fledge.log import read_log
from fledge.model.folder import load_model, save_model
from fledge.model.retask import retask
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.recipes.finetune import finetune, rows_of
from fledge.tune.attach import tune
from fledge.tune.config import TuneConfig
from fledge.tune.folder import load_adapter, save_adapter
from fledge.tune.load import load_served
from tests.compress.tiny import ids, tiny
from tests.data.corrupted import wordpiece
from tests.parity.reference import limit
from tests.recipes.test_finetune import CLASSES, TRAIN, config_of, rows, their_inputs
from tests.recipes.test_finetune import base as base  # the fixture
from tests.tune.test_heads import stopped_as_straight

N = 6
LONGEST = 57  # with three tokens of a frame: both texts of a long pair lose alike
TUNES = {
    "prompt": TuneConfig("prompt", virtual_tokens=N),
    "text": TuneConfig("prompt", virtual_tokens=N, init="text", init_text="the old dog"),
    "prefix": TuneConfig("prefix", virtual_tokens=N),
    "projected": TuneConfig("prefix", virtual_tokens=N, projection=9),
    "lora": TuneConfig("lora", rank=2),
}


def slow(*one: str):
    return pytest.param(*one, marks=pytest.mark.slow)


@torch.no_grad()
def asked(config, folder: Path, task: str) -> tuple[dict, torch.Tensor, torch.Tensor, Any]:
    """The held-out rows as transformers wants them, the published folder's numbers for them, those without virtual
    tokens, and which of them count."""
    model = load_served(folder).eval()
    kind, (_, held) = kind_of(model.config), rows_of(config)
    by_place = {f"{config.data.path}, line {n}": row for n, row in enumerate(rows(task), 1)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.path)
    inputs = their_inputs(tokenizer, task, [by_place[one.place] for one in held], kind.names, LONGEST)
    inputs = {name: one for name, one in inputs.items() if name not in ("labels", "start_positions", "end_positions")}
    reader = reader_of(model.config, wordpiece(), LONGEST, kind, N)
    batch = batches_of(reader, kind, held, rows=9).in_order(0, len(held))
    # PEFT's class for spans gives its model no segments where there are virtual tokens
    tokens = replace(batch.tokens, kind=None) if task == "span" else batch.tokens
    found = model.head(kind.head, tokens, batch.layout)
    model.virtual = None
    bare = model.head(kind.head, tokens, batch.layout)
    return inputs, found, bare, batch.tokens.doc >= 0 if task in ("token", "span") else ...


def their_class(base: Path, task: str, names: tuple[str, ...] = ()):
    labels = {"id2label": dict(enumerate(names))} if names else {"num_labels": 1 if task != "span" else 2}
    return getattr(transformers, CLASSES[task]).from_pretrained(base, **({} if task == "choice" else labels))


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("task", "method"),
    [("sequence", "prefix"), ("token", "text"), slow("regression", "projected"), slow("span", "prompt"),
     slow("span", "projected")],
)  # fmt: skip
def test_peft_gives_the_answers_of_the_published_folder(base, tmp_path, task, method):
    config = config_of(base, tmp_path, task, tune=TUNES[method])
    folder = Path(finetune(config)["model"])
    inputs, found, bare, there = asked(config, folder, task)
    their = their_class(base, task, kind_of(load_served(folder).config).names)
    with torch.no_grad():
        out = peft.PeftModel.from_pretrained(their, folder).eval()(**inputs)
    wanted = torch.stack([out.start_logits, out.end_logits], -1) if task == "span" else out.logits
    if TUNES[method].method == "prompt":
        wanted = wanted[:, N:]  # virtual tokens have answers there too
    assert difference(found[there], wanted[there]) <= 2e-5
    assert difference(bare[there], wanted[there]) > 1e-3  # the control
    assert torch.equal(load_model(base).embedding.weight, load_served(folder).embedding.weight)
    assert verify(folder)["kind"] == "adapter"


@pytest.mark.parametrize("task", ["sequence", slow("regression"), slow("choice")])
def test_a_heads_first_token_behind_a_prompt_is_the_texts_own_and_peft_refuses_what_it_has_no_word_for(
    base, tmp_path, task
):
    config = config_of(base, tmp_path, task, tune=TUNES["prompt"])
    folder = Path(finetune(config)["model"])
    inputs, found, bare, _ = asked(config, folder, task)
    their = their_class(base, task, kind_of(load_served(folder).config).names).eval()
    with SafetensorsFile(folder / "adapter_model.safetensors") as file:
        tensors = {name: file.read(name) for name in file.entries}
    rows_there = tensors.pop("prompt_embeddings")
    their.load_state_dict({name.removeprefix("base_model."): one for name, one in tensors.items()}, strict=False)
    flat = {name: one.reshape(-1, one.shape[-1]) for name, one in inputs.items()}
    n_rows = len(flat["input_ids"])
    own = their.get_input_embeddings()(flat["input_ids"])
    with torch.no_grad():
        states = their.bert(
            inputs_embeds=torch.cat((rows_there.expand(n_rows, -1, -1), own), 1),
            attention_mask=torch.cat((torch.ones(n_rows, N), flat["attention_mask"]), 1),
            token_type_ids=torch.cat((torch.zeros(n_rows, N).long(), flat["token_type_ids"]), 1),
        ).last_hidden_state
        wanted = their.classifier(their.bert.pooler(states[:, N:]))
        of_virtual = their.classifier(their.bert.pooler(states))
    assert difference(found, wanted) <= 2e-5
    assert difference(bare, wanted) > 1e-4 and difference(of_virtual, wanted) > 1e-4  # the controls
    with pytest.raises(ValueError, match="Invalid task type"):
        peft.PeftModel.from_pretrained(their, folder)


@pytest.mark.parametrize(
    ("family", "task", "kind"),
    [("bert", "token", "prompt"), ("bert", "sequence", "prefix"), ("bert", "span", "prefix"),
     ("bert", "sequence", "lora"), ("llama", "sequence", "prompt"), ("llama", "sequence", "prefix")],
)  # fmt: skip
@torch.no_grad()
def test_folders_of_peft_with_a_head_are_read_and_own_ones_read_there(tmp_path, family, task, kind):
    """A decoder's last token stands behind a prompt for PEFT too."""
    save_model(retask(tiny(family), task, 3 if task != "span" else 2), tmp_path / "base")
    word = {"token": "TOKEN_CLS", "sequence": "SEQ_CLS", "span": "QUESTION_ANS"}[task]
    made = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
    asked_for = made[kind](task_type=word, num_virtual_tokens=N) if kind in made else peft.LoraConfig(task_type=word)
    their = peft.get_peft_model(their_base(tmp_path, task), asked_for).eval()
    for name, parameter in their.named_parameters():
        if "modules_to_save" in name:
            parameter.add_(0.1)
    their.save_pretrained(tmp_path / "adapter")
    found = ids(2, 14)
    wanted = numbers(their(found), task)
    our = load_adapter(load_model(tmp_path / "base"), tmp_path / "adapter").eval()
    got = our.head(task, one_document(found), OneDocument())
    wanted = wanted[:, N:] if kind == "prompt" and task != "sequence" else wanted
    assert (got - wanted).abs().max() <= limit(wanted)
    plain = load_model(tmp_path / "base").head(task, one_document(found), OneDocument())
    assert (plain - wanted).abs().max() > 100 * limit(wanted)  # the control
    config = TUNES[kind]
    own = tune(load_model(tmp_path / "base"), config, 5, heads=True).eval()
    save_adapter(own, tmp_path / "own", config, tmp_path / "base")
    read = peft.PeftModel.from_pretrained(their_base(tmp_path, task), tmp_path / "own").eval()
    wanted = numbers(read(found), task)
    wanted = wanted[:, N:] if kind == "prompt" and task != "sequence" else wanted
    assert (own.head(task, one_document(found), OneDocument()) - wanted).abs().max() <= limit(wanted)


def their_base(folder: Path, task: str):
    model = getattr(transformers, CLASSES[task]).from_pretrained(folder / "base")
    model.config.pad_token_id = model.config.pad_token_id or 0
    return model


def numbers(out, task: str) -> torch.Tensor:
    return torch.stack([out.start_logits, out.end_logits], -1) if task == "span" else out.logits


def test_a_prompt_of_peft_whose_head_reads_a_virtual_token_is_refused(tmp_path):
    save_model(retask(tiny("bert"), "sequence", 3), tmp_path / "base")
    asked_for = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=N)
    peft.get_peft_model(their_base(tmp_path, "sequence"), asked_for).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="SEQ_CLS, whose head reads the first virtual one in PEFT"):
        load_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")


@pytest.mark.parametrize("method", [slow("prompt"), "projected"])
def test_a_stopped_run_goes_on_to_the_same_bits(base, tmp_path, method):
    stopped_as_straight(base, tmp_path, TUNES[method])


@pytest.mark.parametrize(("task", "method"), [("sequence", "prefix"), slow("token", "prompt")])
def test_parts_of_a_batch_give_the_whole_ones_losses_and_virtual_tokens(base, tmp_path, task, method):
    found = []
    for name, micro_rows in (("a", 0), ("b", 3)):
        (tmp_path / name).mkdir()
        train = replace(TRAIN, micro_rows=micro_rows)
        result = finetune(config_of(base, tmp_path / name, task, tune=TUNES[method], train=train))
        with SafetensorsFile(Path(result["model"]) / "adapter_model.safetensors") as file:
            rows_there = file.read("prompt_embeddings")
        log = read_log(tmp_path / name / "run" / "log.jsonl")
        found.append(([event["loss"] for event in log if event["kind"] == "step"], rows_there))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert (found[0][1] - found[1][1]).abs().max() < 1e-4
    begun = tune(retask(load_model(base), task, 3), TUNES[method], TRAIN.seed).virtual.rows
    assert (found[0][1] - begun).abs().max() > 1e-2  # the control: training moved them


@pytest.mark.parametrize("method", ["prompt", slow("prefix")])
def test_the_verbs_tune_and_answer_and_a_damaged_folder_is_refused(base, tmp_path, capfd, method):
    config = config_of(base, tmp_path, "sequence")
    words = ["finetune", f"model.path={base}", f"data.path={config.data.path}", "train.steps=3", "train.rows=4",
             f"tune.method={method}", f"tune.virtual_tokens={N}", f"run.dir={tmp_path / 'run'}", "--json"]  # fmt: skip
    assert main(words) == 0
    capfd.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--file", config.data.path, "--json"]) == 0
    answers = json.loads(capfd.readouterr().out.splitlines()[-1])["answers"]
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    for wanted in map(json.loads, lines):
        assert any(one["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-6) for one in answers)
    folder = tmp_path / "run" / "model"
    (folder / "card.json").unlink(missing_ok=True)
    with SafetensorsFile(folder / "adapter_model.safetensors") as file:
        tensors = {name: file.read(name) for name in file.entries}
    some = {name: tensor for name, tensor in tensors.items() if not name.endswith("classifier.bias")}
    write_safetensors(folder / "adapter_model.safetensors", some)
    with pytest.raises(CheckpointError, match="expected all tensors of the task head"):
        load_served(folder)
    write_safetensors(folder / "adapter_model.safetensors", {**tensors, "base_model.other": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="expected prompt_embeddings"):
        load_served(folder)
    assert main([*words[:-2], "data.max_tokens=60", f"run.dir={tmp_path / 'long'}"]) == 2
    assert "8 to the context of 64 less 6 virtual tokens, got 60" in capfd.readouterr().err
