"""The whole quickstart at toy size: every step by its verb, stopped once, gone on with, reused the second time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from fledge.cli.quickstart import OUT, runs_folder

MODULES = ("abc argparse ast base64 bisect calendar cmd code codeop csv dataclasses difflib dis fileinput filecmp "
           "fnmatch fractions ftplib functools getopt gettext glob graphlib heapq hmac")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a little text and the quickstart's own files at toy size."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "text").mkdir()
    for name in MODULES.split():
        shutil.copy(Path(textwrap.__file__).with_name(f"{name}.py"), folder / "text")
    shutil.copytree(runs_folder(), folder / "runs")
    toy = {
        "2-tokenizer": {"vocab_size": 300},
        "4-pretrain": {
            "model": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "context_tokens": 128},
            "train": {"steps": 6, "warmup_steps": 1, "eval_every_steps": 3, "sample_every_steps": 3},
        },
        "6-sft": {"train": {"steps": 3, "warmup_steps": 1, "eval_every_steps": 0, "sample_every_steps": 3}},
        "8-answers": {"limit_questions": 2, "max_answer_tokens": 4},
    }
    for name, changes in toy.items():
        path = folder / "runs" / f"{name}.yaml"
        tree = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
        path.write_text(yaml.safe_dump(tree))
    return folder


def quickstart(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "fledge", "quickstart", "--text", "text", "--runs", "runs", "--no-serve", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent)}
    return subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True, timeout=240)


def test_a_stopped_quickstart_goes_on_and_a_second_run_trains_nothing(place):
    stopping = place / "runs" / "4-pretrain.yaml"
    whole = stopping.read_text()
    stopping.write_text(whole.replace("steps: 6", "steps: 6\n  stop_after_steps: 2"))
    stopped = quickstart(place)
    assert stopped.returncode == 75, stopped.stderr
    assert not (place / OUT / "sft").exists()
    stopping.write_text(whole)

    first = quickstart(place, "--json")
    assert first.returncode == 0, first.stderr
    assert "continuing from step-" in first.stderr and "computing time" in first.stderr
    result = json.loads(first.stdout.splitlines()[-1])
    assert result["steps"]["pretrain"]["steps"] == 6 and result["matmul_peak_flops"] > 0
    page = (place / OUT / "report.html").read_text()
    assert "Held-out questions" in page and "Bits per byte, held out" in page
    weights = place / OUT / "sft" / "model" / "model.safetensors"
    before = (weights.stat().st_mtime_ns, weights.read_bytes())

    second = quickstart(place, "--json")
    assert second.returncode == 0 and second.stderr.count("already trained") == 2
    assert second.stderr.count("already evaluated") == 2
    assert (weights.stat().st_mtime_ns, weights.read_bytes()) == before
    steps = json.loads(second.stdout.splitlines()[-1])["steps"]
    assert steps["corpus"]["reused_corpus"] and steps["shards"]["reused_shards"] and steps["questions"]["reused"]
    assert steps["tokenizer"]["reused"]


def test_another_text_in_the_same_folder_is_refused(place):
    assert quickstart(place).returncode == 0
    before = contents(place / OUT / "corpus")
    (place / "text" / "more.py").write_text('"""Another module."""\n' + "def f(x):\n    return x\n" * 500)
    changed = quickstart(place)
    assert changed.returncode == 1 and "holds a quickstart of another text; use another --out" in changed.stderr
    assert contents(place / OUT / "corpus") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
