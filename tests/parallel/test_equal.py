"""However many processes share a run and however: the losses, gradient norms and weights of one process.

Each way of sharing has a control: a fault that belongs to it is planted and must be seen.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.parallel.fleet import Fleet, Trained

LARGEST, MEAN, WEIGHTS = 2e-6, 1e-6, 1e-5
# a large epsilon keeps Adam from making a whole step of a gradient that is rounding alone
TRAIN = {"rows": 8, "micro_rows": 2, "steps": 4, "device": "cpu", "threads": 1, "epsilon": 1e-3, "learning_rate": 0.01,
         "save_every_steps": 0, "eval_every_steps": 0}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("causal", {"family": "gpt2"}),
    "llama": ("causal", {"family": "llama", "kv_heads": 2}),
    "bert": ("masked+next", {"family": "bert"}),
    "t5": ("spans", {"family": "t5"}),
    "albert": ("masked+order", {"family": "albert"}),
    "qwen3": ("causal", {"family": "qwen3", "kv_heads": 2}),
    "gemma2": ("causal", {"family": "gemma2", "kv_heads": 2, "context_tokens": 48}),
    "bloom": ("causal", {"family": "bloom"}),
    "bart": ("denoise", {"family": "bart"}),
    "modernbert": ("masked", {"family": "modernbert"}),
}
Mesh = dict[str, Any]
ZERO1, ZERO2, ZERO3 = ({"shard": 2, "shard_stage": stage} for stage in (1, 2, 3))
SEQUENCE = {"tensor": 2, "sequence": True}


def config(model: str, folders: dict[str, str], **train: Any) -> dict[str, Any]:
    objective, shape = MODELS[model]
    sizes = {"width": 32, "layers": 2, "heads": 4, "context_tokens": 48}
    return {"objective": objective, "data": folders, "model": {**sizes, **shape}, "train": {**TRAIN, **train}}


@pytest.fixture(scope="module")
def alone(fleet, folders):
    """One process's run of a model, once."""
    known: dict[Any, Trained] = {}

    def run(model: str, **train: Any) -> Trained:
        key = (model, str(train))
        if key not in known:
            known[key] = fleet.train(config(model, folders, **train))
            assert known[key].errors == [None]
        return known[key]

    return run


def differences(expected: Trained, got: Trained) -> dict[str, float]:
    """By how much a run differs, at most and on average."""
    assert got.errors == [None] * len(got.errors), got.errors
    assert expected.steps.keys() == got.steps.keys() and expected.steps
    losses = torch.tensor(got.losses, dtype=torch.float64) - torch.tensor(expected.losses, dtype=torch.float64)
    norms = torch.tensor(got.norms, dtype=torch.float64) - torch.tensor(expected.norms, dtype=torch.float64)
    a, b = (load_file(run.folder / "model" / "model.safetensors") for run in (expected, got))
    assert a.keys() == b.keys()
    return {
        "loss": float(losses.abs().max()),
        "mean": float(losses.mean().abs()),
        "norm": float(norms.abs().max()),
        "weights": max(float((a[name] - b[name]).abs().max()) for name in a),
        "validation": abs(expected.result["val_loss"] - got.result["val_loss"]),  # type: ignore[index]
    }


def same(expected: Trained, got: Trained) -> None:
    found = differences(expected, got)
    assert found["loss"] <= LARGEST and found["norm"] <= LARGEST and found["validation"] <= LARGEST, found
    assert found["mean"] <= MEAN and found["weights"] <= WEIGHTS, found
    assert [s["tokens"] for s in expected.steps.values()] == [s["tokens"] for s in got.steps.values()]


FAST: list[tuple[str, int, Mesh]] = [
    ("gpt2", 2, {}),
    ("bert", 2, ZERO1),
    ("gpt2", 2, ZERO3),
    ("llama", 2, SEQUENCE),
    ("t5", 2, {"tensor": 2}),
    ("gpt2", 2, {"pipe": 2}),
]
DATA: list[tuple[int, Mesh]] = [(2, {}), (4, {}), (2, ZERO1), (4, {**ZERO1, "shard": 4}), (2, ZERO2), (2, ZERO3),
                                (4, {"shard": 4}), (4, ZERO1), (4, ZERO2), (4, ZERO3)]  # fmt: skip
TENSOR: list[tuple[int, Mesh]] = [(2, {"tensor": 2}), (2, SEQUENCE), (4, {"tensor": 2}), (4, {**SEQUENCE, **ZERO3}),
                                  (4, {"tensor": 2, **ZERO1})]  # fmt: skip
PIPE: list[tuple[int, Mesh]] = [(2, {"pipe": 2}), (2, {"pipe": 2, "schedule": "gpipe"}), (4, {"pipe": 2}),
                                (4, {"pipe": 2, "tensor": 2}), (4, {"pipe": 2, **ZERO1})]  # fmt: skip
GRID = [
    *((model, *mesh) for model in ("gpt2", "bert", "t5", "albert") for mesh in DATA),
    *((model, *mesh) for model in MODELS for mesh in TENSOR),
    *((model, *mesh) for model in ("gpt2", "llama", "bert", "albert", "gemma2", "bloom") for mesh in PIPE),
]


def told(case: object) -> str:
    return "-".join(f"{k}{v}" for k, v in case.items()) or "data" if isinstance(case, dict) else str(case)


@pytest.mark.parametrize(("model", "n", "mesh"), FAST, ids=told)
def test_many_processes_train_as_one(model, n, mesh, fleet: Fleet, folders, alone):
    same(alone(model), fleet.train(config(model, folders), n, parallel=mesh))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "n", "mesh"), GRID, ids=told)
def test_every_mesh_trains_every_model_as_one_process_does(model, n, mesh, fleet: Fleet, folders, alone):
    same(alone(model), fleet.train(config(model, folders), n, parallel=mesh))


FAULTS: list[tuple[str, str, int, Mesh]] = [
    ("no sum", "gpt2", 2, {}),
    ("mean of means", "bert", 2, {}),
    ("same rows", "gpt2", 2, {}),
    ("averaged", "gpt2", 2, ZERO3),
    ("own norm", "gpt2", 2, ZERO3),
    ("not handed out", "bert", 2, ZERO1),
    ("no sum back", "t5", 2, {"tensor": 2}),
    ("bias by all", "gpt2", 2, {"tensor": 2}),
    ("own tokens", "llama", 2, SEQUENCE),
    ("untied", "gpt2", 2, {"pipe": 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "model", "n", "mesh"), FAULTS, ids=told)
def test_a_planted_fault_is_seen(fault, model, n, mesh, fleet: Fleet, folders, alone):
    got = fleet.train(config(model, folders), n, sabotage=fault, parallel=mesh)
    if any(got.errors):
        pytest.fail(f"the fault ended the run: {got.errors}")
    found = differences(alone(model), got)
    assert max(found["loss"], found["norm"]) > 50 * LARGEST, found


def test_planted_faults_of_data_are_seen(fleet: Fleet, folders, alone):
    for fault in ("no sum", "mean of means"):
        found = differences(alone("bert"), fleet.train(config("bert", folders), 2, sabotage=fault, parallel={}))
        assert max(found["loss"], found["norm"]) > 50 * LARGEST, (fault, found)
