"""Memory of training, counted from a config, against what a process really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.memory import training_memory
from fledge.model.show import show
from fledge.model.show_config import ShowConfig

STEP = """
import gc, json, sys
from pathlib import Path
import torch
from fledge.batch import OneDocument, one_document
from fledge.config import from_dict
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.optim.adamw import AdamW, AdamWConfig

def figure(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

def steps(fields, rows, tokens, again):
    config = family(fields["family"]).new_config(from_dict(ShapeConfig, fields))
    model = initialise(build(config, "cpu"), 1).train().checkpoint_blocks(again)
    optimizer = AdamW(model, AdamWConfig())
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = None
        t = one_document(torch.randint(0, 100, (rows, tokens)))
        source = (t, OneDocument()) if len(config.stacks) == 2 else None
        model.loss_sum(t, OneDocument(), t.ids, torch.ones(rows, tokens), source).backward()
        optimizer.step(1e-4)

torch.set_num_threads(1)
fields, rows, tokens, again = json.loads(sys.argv[1])
steps(fields | {"width": 32, "layers": 1, "vocab_size": 128}, 2, 16, again)  # whatever is loaded at first use
gc.collect()
before = figure("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
steps(fields, rows, tokens, again)
print(figure("VmHWM") - before)
"""


def measured(fields: dict, rows: int, tokens: int, again: bool = False) -> int:
    """Bytes that a process grows by while it trains. A fixed threshold of mmap keeps freed tensors out of the heap."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", STEP, json.dumps([fields, rows, tokens, again])]
    return int(subprocess.run(words, capture_output=True, text=True, env=environment, check=True).stdout)


def counted(fields: dict, rows: int, tokens: int, again: bool = False) -> int:
    shape = ShapeConfig(**fields)
    return training_memory(family(shape.family).new_config(shape), rows, tokens, again).peak


def shape(name: str, width: int, layers: int, heads: int, vocab: int, tokens: int, **more: object) -> dict:
    return {"family": name, "width": width, "layers": layers, "heads": heads, "vocab_size": vocab,
            "context_tokens": tokens, **more}  # fmt: skip


SIZES = [
    (shape("llama", 128, 4, 4, 4096, 256), 8, 256),
    (shape("gpt2", 256, 6, 4, 8192, 512), 4, 512),
    (shape("llama", 512, 6, 8, 8192, 256), 8, 256),
    (shape("bert", 128, 4, 4, 4096, 256), 8, 256),
    (shape("bert", 256, 6, 4, 8192, 512), 4, 512),
    (shape("bert", 512, 6, 8, 8192, 256), 8, 256),
    (shape("t5", 128, 4, 4, 4096, 128), 8, 128),
    (shape("t5", 256, 6, 4, 8192, 256), 4, 256),
    (shape("t5", 512, 4, 8, 8192, 256), 8, 256),
    (shape("llama", 128, 4, 4, 4096, 512, attention="linear"), 4, 512),
    (shape("bert", 128, 4, 4, 4096, 1024, attention="longformer", window=256), 2, 1024),
    (shape("bert", 128, 4, 4, 4096, 1024, attention="bigbird"), 2, 1024),
]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("fields", "rows", "tokens"),
    [SIZES[0], *(pytest.param(*size, marks=pytest.mark.slow) for size in SIZES[1:])],
    ids=lambda value: value["family"] if isinstance(value, dict) else str(value),
)
def test_the_counted_peak_is_within_a_tenth_of_a_real_run(fields, rows, tokens, again):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("no /proc/self/clear_refs")
    real = measured(fields, rows, tokens, again)
    assert counted(fields, rows, tokens, again) == pytest.approx(real, rel=0.1)
    other = counted(fields, rows, tokens, not again)  # the control
    assert other > 1.1 * real if again else other < 0.9 * real


def test_the_parts_are_what_they_are_made_of_and_activations_grow_with_rows():
    config = family("gpt2").new_config(ShapeConfig(**SIZES[1][0]))
    small, large = (training_memory(config, rows, 128) for rows in (1, 4))
    n_parameters = show(ShowConfig(model=ShapeConfig(**SIZES[1][0])), json=True)["parameters"]
    assert small.weights == small.gradients == 4 * n_parameters and small.optimizer == 8 * n_parameters
    assert large.weights == small.weights
    # what grows is the rows' share: the gradient of the tied matrix, which the loss makes, stays
    per_row = (large.activations - small.activations) / 3
    assert 0 < per_row < small.activations


def test_show_tells_the_memory_of_training_when_rows_are_given():
    fields = ShapeConfig(**SIZES[0][0])
    result = show(ShowConfig(model=fields, rows=2, row_tokens=64), json=True)
    assert result["training_bytes"]["peak"] > result["training_bytes"]["weights"]
    assert result["checkpointed_training_bytes"]["activations"] < result["training_bytes"]["activations"]
    assert "training_bytes" not in show(ShowConfig(model=fields), json=True)
    for wrong in ({"rows": -1}, {"row_tokens": 5}):
        with pytest.raises(ConfigError):
            ShowConfig(model=fields, **wrong)
    with pytest.raises(ConfigError, match="at most 256 tokens"):
        show(ShowConfig(model=fields, rows=1, row_tokens=257), json=True)


def test_recomputed_blocks_keep_their_inputs_alone():
    config = family("gpt2").new_config(ShapeConfig(**SIZES[1][0]))
    kept, again = (training_memory(config, 4, 128, on) for on in (False, True))
    assert (again.weights, again.gradients, again.optimizer) == (kept.weights, kept.gradients, kept.optimizer)
    half = ShapeConfig(**SIZES[1][0] | {"layers": 3})
    fewer = training_memory(family("gpt2").new_config(half), 4, 128, True)
    assert again.activations - fewer.activations == 3 * 4 * 4 * 128 * 256  # blocks · bytes · rows · tokens · width
    assert again.peak < 0.8 * kept.peak


def test_a_mixture_of_experts_is_refused_with_the_reason():
    mixture = ShapeConfig(**shape("mixtral", 32, 1, 4, 100, 64), experts=4, experts_per_token=2)
    with pytest.raises(ConfigError, match="which expert each token chooses"):
        training_memory(family("mixtral").new_config(mixture), 1, 32)


@pytest.mark.parametrize(
    ("attention", "more"), [("bigbird", {"block": 64}), ("longformer", {"window": 64}), ("fixed", {"stride": 256})]
)
def test_patterns_are_counted(attention, more):
    name = "gpt2" if attention == "fixed" else "bert"
    fields = ShapeConfig(**shape(name, 32, 1, 4, 100, 1280), attention=attention, **more)
    config = family(name).new_config(fields)
    memory = training_memory(config, 1, 1280)  # both lengths beyond what is computed with a mask
    assert memory.peak >= memory.activations > 1.5 * training_memory(config, 1, 640).activations
