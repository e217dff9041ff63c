"""A tiny base, conversations, and the config of a run that tunes the one on the others."""

from __future__ import annotations

import json
from pathlib import Path

from fledge.config import from_dict
from fledge.model.folder import save_model
from fledge.recipes.config import SftConfig
from fledge.text.tokenizer import byte_level
from tests.compress.tiny import tiny

TUNING = {"method": "lora", "rank": 4, "dropout": 0.2}
N_STEPS = 10


def made_place(folder: Path) -> Path:
    """`folder`, with a base and conversations."""
    save_model(tiny("gpt2", noise=0.0, context_tokens=96), folder / "base", byte_level())
    rows = [
        {"messages": [{"role": "user", "content": f"say {n % 4}"}, {"role": "assistant", "content": "abcd"[n % 4] * 3}]}
        for n in range(24)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_for(place: Path, run: Path, tune: dict | None = None, **train) -> SftConfig:
    settings = {
        "steps": N_STEPS, "rows": 2, "row_tokens": 64, "learning_rate": 0.02, "device": "cpu", "threads": 1,
        "save_every_steps": 4, "sample_every_steps": 6, "weight_decay": 0.0, "seed": 3, **train,
    }  # fmt: skip
    data = {"path": str(place / "chats.jsonl")}
    raw = {"model": {"path": str(place / "base")}, "data": data, "train": settings, "run": {"dir": str(run)}}
    return from_dict(SftConfig, raw | {"tune": TUNING if tune is None else tune})
