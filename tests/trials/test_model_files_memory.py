"""Trials 22 and 27, their memory: what is refused takes little of it. Measured in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fledge.errors import CheckpointError
from fledge.model.folder import load_model
from tests.conftest import ROOT
from tests.trials.test_model_files import CASES, HEADERS, entry, file_of, hostile, lying, tiny_folder

MEASURE = """
import sys
from pathlib import Path
from fledge.errors import CheckpointError, ConfigError
from fledge.model.folder import load_model
from fledge.model.safetensors_file import SafetensorsFile
from tests.trials.peak import peak_bytes
load_model(sys.argv[2])  # what torch imports at its first use counts for neither
before = peak_bytes()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_model(path) if path.is_dir() else SafetensorsFile(path).close()
        print("loaded", path.name)
    except (CheckpointError, ConfigError):
        pass
print(peak_bytes() - before)
"""


def growth(folder: Path) -> tuple[int, list[str]]:
    """Bytes by which a process's peak grows from opening everything in `folder`, and the names that it could open."""
    truthful = tiny_folder(folder.parent / "truthful")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(truthful)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    *opened, bytes_grown = done.stdout.splitlines()
    return int(bytes_grown), opened


def folder_of(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir(exist_ok=True)
    return tmp_path / "files"


def test_trial_22_lying_headers_take_little_memory(tmp_path):
    for number, name in enumerate(HEADERS):
        lying(folder_of(tmp_path) / f"{number}.safetensors", name)
    n_bytes, opened = growth(tmp_path / "files")
    assert n_bytes < 50 << 20 and opened == []


def test_trial_22_the_control_a_header_that_is_read_takes_what_it_holds(tmp_path):
    header = {f"layer.{i}.{'x' * 40}": entry([0], 0, 0) for i in range(45_000)}
    n_bytes, opened = growth(file_of(folder_of(tmp_path) / "many.safetensors", header).parent)
    assert 10 << 20 < n_bytes < 60 << 20 and opened == ["loaded many.safetensors"]


def large_but_legal(folder: Path) -> Path:
    config = json.loads((tiny_folder(folder) / "config.json").read_text())
    config |= {"vocab_size": 16_000_000, "hidden_size": 65536, "intermediate_size": 65536, "head_dim": 32768}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_trial_27_hostile_numbers_and_a_large_but_legal_config_over_small_weights_allocate_nothing(tmp_path):
    for number, (key, value) in enumerate(CASES):
        hostile(tmp_path / "files" / str(number), key, value)
    with pytest.raises(CheckpointError, match="expected shape"):
        load_model(large_but_legal(tmp_path / "files" / "large"))
    n_bytes, opened = growth(tmp_path / "files")
    assert n_bytes < 50 << 20 and opened == []
