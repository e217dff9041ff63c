"""Loading holds each weight once: peak memory at most 1.1 of the weights on a 1.1B-parameter model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

WRITE = """
import sys, torch
from fledge.model.families import family, preset_family
from fledge.model.folder import config_json, write_json
from fledge.model.safetensors_file import write_safetensors
from fledge.model.names import expanded, their_shape
from fledge.model.transformer import build
from pathlib import Path
from dataclasses import replace
folder = Path(sys.argv[1]); folder.mkdir()
config = family("llama").build(preset_family("tinyllama-1.1b").presets["tinyllama-1.1b"])
shapes = {n: tuple(p.shape) for n, p in build(config).named_parameters()}
write_json(folder / "config.json", config_json(config, torch.float32))
torch.manual_seed(1)
state = {w.theirs: torch.randn(their_shape(w, shapes)) * 0.02 for w in expanded(family("llama"), config)}
write_safetensors(folder / "model.safetensors", state)
"""

LOAD = """
import sys, torch
import fledge.engine.loaded
from tests.trials.peak import peak_bytes
from fledge.model.folder import load_model
before = peak_bytes()
model = load_model(sys.argv[1])
after = peak_bytes()
weights = sum(p.numel() * 4 for p in model.parameters())
print(weights, after - before)
"""

LOAD_TWICE = LOAD.replace("after = ", "copies = [p.detach().clone() for p in model.parameters()]\nafter = ")


@pytest.mark.slow
def test_loading_a_model_of_1_1_billion_parameters_peaks_at_1_1_of_its_weights(tmp_path):
    folder = tmp_path / "big"
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True)
    try:
        for program, low, high in ((LOAD, 0.99, 1.1), (LOAD_TWICE, 1.9, 2.2)):
            done = subprocess.run(
                [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True, cwd=ROOT
            )
            weights, peak = map(int, done.stdout.split())
            assert weights == 1_100_048_384 * 4
            assert low <= peak / weights <= high, f"{peak / weights:.3f}"
            print(f"peak memory {peak / weights:.3f} of the weights")
    finally:
        (folder / "model.safetensors").unlink()
