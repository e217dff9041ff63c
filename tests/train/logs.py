"""Run folders with made-up logs, in which everything that a report shows happens at known steps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

PHASES = {"data": 0.01, "forward": 0.2, "backward": 0.4, "optimizer": 0.05, "other": 0.04}
SPIKE, RESUMED, SAVED, LOST = 70, 60, (50, 100), 40


def write_run(
    folder: Path, steps: int = 120, rate: float = 1e-3, level: float = 2.0, objective: str = "causal", **more: Any
) -> Path:
    """A run of `steps` steps whose loss falls to about `level`, with a spike, a resume, checkpoints and a batch that is
    not finite. `more`: further keys of its config."""
    folder.mkdir(parents=True)
    tree = {"objective": objective, "model": {"width": 64}, "train": {"learning_rate": rate, "steps": steps, **more}}
    tree["run"] = {"dir": str(folder)}
    (folder / "run.yaml").write_text(json.dumps(tree))
    time = 1_700_000_000.0
    common = {"facts": {"device": "cpu", "threads": 1}, "parameters": 1000, "flops_per_token": 6e3}
    events: list[dict[str, Any]] = [{"kind": "start", "time": time, "step": 0, **common, "matmul_peak_flops": 1e11}]
    sources = [{"name": name, "weight": w, "tokens": 100, "share": w, "epochs": 1.5, "spent": False}
               for name, w in (("books", 0.75), ("code", 0.25))]  # fmt: skip
    if objective == "mixture":
        events.append({"kind": "mixture", "time": time, "sources": sources})
    for step in range(1, steps + 1):
        time += 0.7
        if step == LOST:
            events.append({"kind": "non_finite", "time": time, "step": step - 1, "batch": step, "samples": ["a@1"]})
        if step == RESUMED:
            events.append({"kind": "resume", "time": time, "step": step - 1, **common})
        loss = level + 2 * math.exp(-step / 30) + 0.02 * math.sin(7.3 * step) + (3.0 if step == SPIKE else 0.0)
        figures = {"loss": loss, "learning_rate": rate, "gradient_norm": 1 + 1 / step}
        if "+" in objective:
            figures |= {"loss_masked": loss - 0.5, "loss_next_sentence": 0.5}
        events.append({"kind": "step", "time": time, "step": step, **figures, "tokens": 64 * step, "mfu": 0.31,
                       "tokens_per_second": 91.4, "seconds": 0.7 * step, "skipped": int(step >= LOST),
                       "times": PHASES})  # fmt: skip
        if step % 20 == 0 and step < steps:
            events.append({"kind": "evaluate", "time": time, "step": step, **validated(objective, loss),
                           "times": {"evaluation": 0.6}})  # fmt: skip
        if step in SAVED:
            events.append({"kind": "checkpoint", "time": time, "step": step, "times": {"checkpoint": 0.9}})
    events.append({"kind": "end", "time": time, **validated(objective, level), "steps": steps, "tokens": 64 * steps,
                   "seconds": 0.7 * steps, "cpu_seconds": 0.7 * steps})  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def validated(objective: str, loss: float) -> dict[str, float]:
    found = {"val_loss": loss, "val_tokens": 1000.0, "ema_val_loss": loss - 0.01}
    if objective.startswith("masked"):
        found |= {"val_masked_loss": loss, "val_masked_accuracy": 0.4}
    if "+" in objective:
        found |= {"val_next_sentence_loss": 0.5, "val_next_sentence_accuracy": 0.8}
    if objective == "mixture":
        found |= {"val_loss/books": loss - 0.1, "val_loss/code": loss + 0.3}
    return found
