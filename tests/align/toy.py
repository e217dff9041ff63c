"""A tiny world for learning from rewards: copy the digit. The best policy is known, and is rewarded with 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.text.tokenizer import Tokenizer, characters

DIGITS = "0123456789"


def letters() -> Tokenizer:
    return characters(DIGITS + "+-*=. abc", ("<|bos|>", "<|eos|>", "<|pad|>"))


def tiny(seed: int = 1, tokenizer: Tokenizer | None = None, width: int = 32) -> Transformer:
    tokenizer = tokenizer or letters()
    shape = ShapeConfig(
        "llama", width=width, layers=2, heads=4, kv_heads=2, context_tokens=32, vocab_size=tokenizer.vocab_size
    )
    return initialise(build(family("llama").build(shape), "cpu"), seed)


def world(folder: Path, seed: int = 1) -> Path:
    """A model folder and prompts "3=" whose answer is "3"."""
    if not (folder / "base").exists():
        save_model(tiny(seed), folder / "base", letters())
        rows = [{"prompt": f"{digit}=", "answer": digit} for digit in DIGITS]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_file(folder: Path, run_dir: str = "run", **more: Any) -> Path:
    """A run of the toy world; `more` replaces keys inside groups, or other values."""
    world(folder)
    config: dict[str, Any] = {
        "model": {"path": str(folder / "base")},
        "data": {"path": str(folder / "prompts.jsonl"), "val": str(folder / "prompts.jsonl")},
        "rollout": {"prompts": 4, "samples": 4, "max_tokens": 3, "epochs": 2},
        "rewards": [
            {"kind": "regex", "pattern": "[0-9].*"},
            {"kind": "text", "pattern": "^."},
            {"kind": "length", "tokens": 2, "weight": 0.1},
        ],
        "train": {
            "steps": 16, "rows": 4, "learning_rate": 0.01, "schedule": "constant", "weight_decay": 0.0, "threads": 1,
            "save_every_steps": 0, "eval_every_steps": 0,
        },
        "run": {"dir": str(folder / run_dir)},
    }  # fmt: skip
    for key, value in more.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / f"{run_dir}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]
