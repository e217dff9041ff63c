"""Adapters and frozen parts in two processes: the losses, gradient norms and weights of one, a stop that loses nothing,
and a folder that PEFT opens.

Each way of sharing has a control: a fault that belongs to it is planted and must be seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fledge.batch import OneDocument, one_document
from fledge.compress.config import QuantizeConfig
from fledge.config import to_dict
from fledge.lineage import read_card
from fledge.log import read_log
from fledge.model.folder import load_model, save_model
from fledge.recipes.quantize import quantize_model
from fledge.text.tokenizer import Tokenizer
from fledge.tune.folder import load_adapter
from tests.compress.tiny import tiny
from tests.data.corrupted import wordpiece
from tests.parallel.fleet import Fleet, Trained
from tests.parallel.test_equal import LARGEST, MEAN, WEIGHTS, ZERO1, ZERO2, ZERO3, Mesh, told
from tests.parity.reference import randomised
from tests.recipes import test_text2text as text2text
from tests.recipes.test_finetune import rows as labelled_rows
from tests.tune.running import config_for, made_place

LORA = {"method": "lora", "rank": 4, "dropout": 0.2, "targets": ["all-linear"]}
METHODS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {**LORA, "dora": True, "dropout": 0.0},
    "ia3": {"method": "ia3"},
    "bottleneck": {"method": "houlsby", "bottleneck": 8},
    "prompt": {"method": "prompt", "virtual_tokens": 4},
    "prefix": {"method": "prefix", "virtual_tokens": 4, "projection": 16},
    "freeze table": {"freeze": ["wte"]},
    "freeze block": {"freeze": ["h.0", "wpe", "wte"]},
    "freeze last": {"freeze": ["h.1", "ln_f"]},
}
TRAIN = {"steps": 4, "rows": 4, "micro_rows": 2, "learning_rate": 0.02, "epsilon": 1e-3, "save_every_steps": 0,
         "sample_every_steps": 0, "eval_every_steps": 0}  # fmt: skip
FAST = [("lora", {}), ("dora", ZERO3), ("prefix", ZERO1), ("freeze block", ZERO2)]
GRID = [(method, mesh) for method in METHODS for mesh in ({}, ZERO1, ZERO2, ZERO3)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return made_place(tmp_path_factory.mktemp("tuned"))


def tree(place: Path, method: str, **train: Any) -> dict[str, Any]:
    return to_dict(config_for(place, place / "run", METHODS[method], **{**TRAIN, **train}))


@pytest.fixture(scope="module")
def alone(pair, place):
    """One process's run of a method, once."""
    known: dict[str, Trained] = {}

    def run(method: str) -> Trained:
        if method not in known:
            known[method] = pair.run("sft", tree(place, method))
            assert known[method].errors == [None]
        return known[method]

    return run


def differences(expected: Trained, got: Trained) -> dict[str, float]:
    """By how much a run differs, at most and on average; of norms above 1 relative to them."""
    assert got.errors == [None] * len(got.errors), got.errors
    assert expected.steps.keys() == got.steps.keys() and expected.steps
    losses = torch.tensor(got.losses, dtype=torch.float64) - torch.tensor(expected.losses, dtype=torch.float64)
    sizes = torch.tensor(expected.norms, dtype=torch.float64)
    norms = (torch.tensor(got.norms, dtype=torch.float64) - sizes) / sizes.clamp(min=1)
    return {
        "loss": float(losses.abs().max()),
        "mean": float(losses.mean().abs()),
        "norm": float(norms.abs().max()),
        "weights": apart(expected.folder / "model", got.folder / "model"),
        "validation": abs(expected.result["val_loss"] - got.result["val_loss"]),  # type: ignore[index]
    }


def apart(a: Path, b: Path) -> float:
    """The largest difference of two folders' weights, which have the same names."""
    files = sorted(path.name for path in a.glob("*.safetensors"))
    assert files and files == sorted(path.name for path in b.glob("*.safetensors"))
    found = [(load_file(a / name), load_file(b / name)) for name in files]
    assert all(x.keys() == y.keys() for x, y in found)
    return max(float((x[name] - y[name]).abs().max()) for x, y in found for name in x)


def same(expected: Trained, got: Trained) -> None:
    found = differences(expected, got)
    assert found["loss"] <= LARGEST and found["norm"] <= LARGEST and found["validation"] <= LARGEST, found
    assert found["mean"] <= MEAN and found["weights"] <= WEIGHTS, found


@pytest.mark.parametrize(("method", "mesh"), FAST, ids=told)
def test_two_processes_tune_as_one(method, mesh, pair: Fleet, place, alone):
    same(alone(method), pair.run("sft", tree(place, method), 2, parallel=mesh))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "mesh"), GRID, ids=told)
def test_every_method_is_tuned_on_every_mesh_as_in_one_process(method, mesh, pair: Fleet, place, alone):
    same(alone(method), pair.run("sft", tree(place, method), 2, parallel=mesh))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"tensor": 2, "sequence": True}], ids=told)
@pytest.mark.parametrize("method", [name for name in METHODS if name.startswith("freeze")])
def test_frozen_parts_are_cut_by_matrices_too(method, mesh, pair: Fleet, place, alone):
    same(alone(method), pair.run("sft", tree(place, method), 2, parallel=mesh))


@pytest.mark.parametrize(
    ("fault", "method", "mesh"),
    [
        ("mean of means", "lora", {}),
        pytest.param("no sum", "lora", {}, marks=pytest.mark.slow),
        pytest.param("same rows", "prefix", {}, marks=pytest.mark.slow),
        pytest.param("other dropout", "lora", {}, marks=pytest.mark.slow),
        pytest.param("averaged", "dora", ZERO3, marks=pytest.mark.slow),
        pytest.param("own norm", "freeze block", ZERO3, marks=pytest.mark.slow),
        pytest.param("not handed out", "lora", ZERO1, marks=pytest.mark.slow),
        pytest.param("no adapters", "lora", ZERO3, marks=pytest.mark.slow),
    ],
    ids=told,
)
def test_a_planted_fault_is_seen(fault, method, mesh, pair: Fleet, place, alone):
    got = pair.run("sft", tree(place, method), 2, sabotage=fault, parallel=mesh)
    found = differences(alone(method), got)
    assert max(found["loss"], found["norm"]) > 50 * LARGEST, found


def goes_on(fleet: Fleet, run_tree: dict[str, Any], parts: list[tuple[int, Mesh, int]], **more: Any) -> Trained:
    """A run that is stopped, and gone on with by other processes: (how many, how they share, the step to stop at)."""
    for index, (n, mesh, stop) in enumerate(parts):
        got = fleet.run("sft", run_tree, n, index > 0, parallel=mesh, stop_after_steps=stop, **more)
        codes = {error[2] for error in got.errors if error is not None}
        assert codes == ({75} if stop else set()), got.errors
    return got


def same_end(expected: Trained, got: Trained) -> None:
    assert list(got.steps) == list(expected.steps)
    assert max(abs(a - b) for a, b in zip(got.losses, expected.losses, strict=True)) <= LARGEST
    assert apart(expected.folder / "model", got.folder / "model") <= WEIGHTS


@pytest.mark.parametrize(
    ("method", "mesh"),
    [("lora", ZERO3), *(pytest.param(m, z, marks=pytest.mark.slow) for m in METHODS for z in ({}, ZERO1, ZERO2))],
    ids=told,
)
def test_a_stop_loses_nothing_and_one_process_goes_on_from_two(method, mesh, pair: Fleet, place, alone):
    """Two processes stop and go on, then one, then two of another mesh."""
    parts = [(2, mesh, 1), (2, mesh, 2), (1, {}, 3), (2, ZERO1, 0)]
    behind = {"save_every_steps": 1, "keep_last": 9, "checkpoint_async": True}
    got = goes_on(pair, tree(place, method), parts, **behind)
    same_end(alone(method), got)
    first = got.folder / "checkpoints/step-00000001"
    assert read_card(first)["facts"] == {"ranks": 2} and len(list(first.glob("optimizer-*.safetensors"))) == 2
    names = {path.name for path in first.iterdir()}
    assert ("adapter_model.safetensors" in names) == ("method" in METHODS[method])
    assert [e["step"] for e in read_log(got.folder / "log.jsonl") if e["kind"] == "resume"] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, ZERO3], ids=told)
def test_a_moment_that_is_lost_is_seen_in_the_end(mesh, pair: Fleet, place, alone):
    """The control of the stop: going on with an optimizer that begins anew."""
    pair.run("sft", tree(place, "lora"), 2, parallel=mesh, stop_after_steps=2)
    got = pair.run("sft", tree(place, "lora"), 2, True, sabotage="forgets", parallel=mesh)
    assert max(abs(a - b) for a, b in zip(got.losses, alone("lora").losses, strict=True)) > 50 * LARGEST


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, ZERO3], ids=told)
def test_the_best_weights_are_published(mesh, pair: Fleet, place):
    # so fast that the first step stays the best by 0.4, on whatever processor
    better = {"publish_best": True, "eval_every_steps": 1, "eval_rows": 0, "save_every_steps": 1, "keep_last": 9,
              "learning_rate": 0.05, "learning_rate_floor": 1.0, "clip_norm": 0.0}  # fmt: skip
    one, two = (pair.run("sft", tree(place, "lora"), n, parallel=m, **better) for n, m in ((1, {}), (2, mesh)))
    assert two.errors == [None, None] and two.result is not None and one.result is not None
    assert two.result["published_step"] == one.result["published_step"] < 4
    assert abs(two.result["val_loss"] - one.result["val_loss"]) < 1e-4


@pytest.mark.parametrize("method", ["dora", pytest.param("lora", marks=pytest.mark.slow)])
def test_peft_opens_what_two_processes_published(method, pair: Fleet, place):
    got = pair.run("sft", tree(place, method), 2, parallel=ZERO3, sample_every_steps=2)
    assert got.errors == [None, None]
    ids = torch.tensor([[5, 17, 40, 3, 9]])
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "base").eval()
    with torch.no_grad():
        before = base(ids).logits
        theirs = peft.PeftModel.from_pretrained(base, got.folder / "model").eval()(ids).logits
    ours = load_adapter(load_model(place / "base"), got.folder / "model").eval()
    with torch.no_grad():
        mine = ours.logits(ours.hidden(one_document(ids), OneDocument()))
    assert float((mine - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))
    assert float((before - theirs).abs().max()) > 1e-3  # the control: it has learnt
    assert [e["step"] for e in read_log(got.folder / "log.jsonl") if e["kind"] == "sample"] == [0, 2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, ZERO1, ZERO3], ids=told)
def test_an_adapter_beside_quantized_weights_is_tuned_by_two(mesh, pair: Fleet, place):
    """The first step is that of one process. Then a sum in another order may turn the rounding of an activation to 8
    bits, which is a step of a thousandth."""
    if not (place / "int8").exists():
        quantize_model(QuantizeConfig(place / "base", place / "int8", "rtn"), json=True)
    asked = {**tree(place, "lora"), "model": {"path": str(place / "int8")}}
    one, two = pair.run("sft", asked), pair.run("sft", asked, 2, parallel=mesh)
    assert one.errors == [None] and two.errors == [None, None]
    assert abs(one.losses[0] - two.losses[0]) <= LARGEST and abs(one.norms[0] - two.norms[0]) <= LARGEST
    assert max(abs(a - b) for a, b in zip(one.losses, two.losses, strict=True)) < 1e-3
    assert one.losses[0] - one.losses[-1] > 0.1


def task_tree(folder: Path, task: str, tune: dict[str, Any]) -> dict[str, Any]:
    """`fledge finetune` of a small BERT."""
    tokenizer = wordpiece()
    save_model(tiny("bert", noise=0.02, vocab_size=tokenizer.vocab_size), folder / "bert", tokenizer)
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled_rows(task)))
    data = {"path": str(path), "label": "labels" if task == "several" else ""}
    train = {**TRAIN, "device": "cpu", "threads": 1, "weight_decay": 0.0}
    known = "sequence" if task == "several" else task
    return {"task": known, "model": {"path": str(folder / "bert")}, "data": data, "tune": tune, "train": train}


TASKS = [("sequence", LORA, ZERO3), ("token", {"method": "prefix", "virtual_tokens": 3}, ZERO3),
         ("span", {"method": "houlsby", "bottleneck": 4}, ZERO1), ("regression", {"freeze": ["embeddings"]}, ZERO2),
         ("several", {"method": "ia3"}, ZERO3), ("choice", LORA, {}), ("sequence", LORA, {})]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "tune", "mesh"), [TASKS[0], *(pytest.param(*one, marks=pytest.mark.slow) for one in TASKS[1:])], ids=told
)
def test_a_task_head_is_tuned_beside_an_adapter_by_two_as_by_one(task, tune, mesh, pair: Fleet, tmp_path):
    asked = task_tree(tmp_path, task, tune)
    if task == "choice":
        asked["train"] |= {"rows": 12, "micro_rows": 6}  # questions of three choices
    if task == "regression":
        asked["train"]["learning_rate"] = 0.0003  # three held-out answers stay apart, so that they have a correlation
    one, two = pair.run("finetune", asked), pair.run("finetune", asked, 2, parallel=mesh)
    same(one, two)
    assert one.result is not None and two.result is not None
    scores, others = one.result["scores"], two.result["scores"]
    if task != "regression":
        assert scores == others
        return
    assert scores["spearman"] == others["spearman"]
    for name in ("mse", "pearson"):  # sums of real numbers
        assert scores[name]["n"] == others[name]["n"]
        for part in ("value", "interval"):
            assert scores[name][part] == pytest.approx(others[name][part], abs=LARGEST), name


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, ZERO3], ids=told)
def test_an_encoder_decoder_learns_pairs_beside_an_adapter_by_two_as_by_one(mesh, pair: Fleet, tmp_path):
    model = text2text.CLASSES["t5"](text2text.their_config("t5"))
    randomised(model, 0.2).save_pretrained(tmp_path / "theirs")
    text2text.tokenizer_folder(tmp_path / "theirs", "t5")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "base", Tokenizer.load(tmp_path / "theirs"))
    rows = "".join(json.dumps(text2text.pair(n)) + "\n" for n in range(24))
    (tmp_path / "pairs.jsonl").write_text(rows)
    asked = to_dict(text2text.config_of(tmp_path, tmp_path / "run"))
    asked |= {"tune": LORA, "train": {**TRAIN, "device": "cpu", "threads": 1}}
    one, two = pair.run("finetune", asked), pair.run("finetune", asked, 2, parallel=mesh)
    same(one, two)
    texts = [(run.folder / "predictions.jsonl").read_text() for run in (one, two)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("method", "mesh", "says"),
    [("lora", {"tensor": 2}, "tensor: expected 1 for adapters"), ("freeze block", {"pipe": 2}, "pipe: expected 1")],
    ids=told,
)
def test_what_is_not_cut_is_refused(method, mesh, says, pair: Fleet, place):
    got = pair.run("sft", tree(place, method), 2, parallel=mesh)
    assert {error[2] for error in got.errors if error} == {2}  # the first to fail says why
    assert any(error and error[0] == "ConfigError" and says in error[1] for error in got.errors), got.errors
