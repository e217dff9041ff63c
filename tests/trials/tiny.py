"""A tiny training run through the command line: what the training trials share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs! 0123456789\n"


def write_config(folder: Path, run_dir: str = "run", **train: Any) -> Path:
    """A config over a small text; `train` keys override."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("".join(f"{i}. {TEXT[i % 40:]}" for i in range(300)), encoding="utf-8")
    config = {
        "model": {"family": "llama", "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "context_tokens": 32},
        "data": {"path": str(text)},
        "train": {
            "steps": 20, "rows": 4, "micro_rows": 2, "seed": 1, "save_every_steps": 5, "keep_last": 2,
            "learning_rate": 0.003, "threads": 1, **train,
        },
        "run": {"dir": str(folder / run_dir)},
    }  # fmt: skip
    path = folder / f"{run_dir}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fledge", *words]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def fledge(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(command(*words), capture_output=True, text=True, env=environment(**more), timeout=300)


def pretrain(config: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return fledge("pretrain", str(config), "--json", *words, **more)


def losses(run: Path) -> dict[int, str]:
    """Step -> loss as a hex float, from the run's log."""
    found = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "step":
            assert event["step"] not in found, "a step stands twice in the log"
            found[event["step"]] = float(event["loss"]).hex()
    return found


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
