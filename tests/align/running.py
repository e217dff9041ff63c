"""A tiny base, pairs of answers, and the config of a run that learns from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fledge.config import from_dict
from fledge.model.folder import save_model
from fledge.recipes.preference_config import AlignConfig
from fledge.text.tokenizer import byte_level
from tests.compress.tiny import tiny

N_STEPS = 8
LORA = {"method": "lora", "rank": 4, "dropout": 0.2, "targets": ["all-linear"]}


def made_place(folder: Path, n_pairs: int = 24) -> Path:
    """`folder`, with a base and pairs: what was asked for is better than other letters."""
    save_model(tiny("llama", noise=0.0, context_tokens=96), folder / "base", byte_level())
    rows = [
        {"prompt": f"say {n % 4}", "chosen": "abcd"[n % 4] * (2 + n % 3), "rejected": "zyxw"[n % 4] * (1 + n % 5)}
        for n in range(n_pairs)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def raw_config(place: Path, run: Path, **train: Any) -> dict[str, Any]:
    settings = {
        "steps": N_STEPS, "rows": 4, "learning_rate": 0.003, "device": "cpu", "threads": 1, "save_every_steps": 3,
        "weight_decay": 0.0, "seed": 3, "eval_every_steps": 0, **train,
    }  # fmt: skip
    data = {"path": str(place / "pairs.jsonl"), "val_fraction": 0.25}
    return {"model": {"path": str(place / "base")}, "data": data, "train": settings, "run": {"dir": str(run)}}


def config_for(place: Path, run: Path, loss: str = "dpo", tune: dict | None = None, **train: Any) -> AlignConfig:
    raw = raw_config(place, run, **train) | {"preference": {"loss": loss}}
    return from_dict(AlignConfig, raw | ({"tune": tune} if tune else {}))


def steps_of(run: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "step"]
