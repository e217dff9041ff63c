"""Ways of tuning MiniLM to tell praise of a film from blame: one table over seeds, all on the same held-out rows.

python runs/heads/mood_table.py MINILM ROWS OUT [SEED …]: the model folder, rotten tomatoes' rt.jsonl.gz, a folder for
the runs (each is one `fledge finetune`; those that ended are not run again). Every tenth row is held out. Accuracy over
all seeds with a 95 % interval (rows resampled, all seeds of a row together), trained numbers, CPU seconds, peak memory;
and the paired difference of tuning every weight and LoRA.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ended import ended

CONFIG = Path(__file__).parent / "mood.yaml"
METHODS = {
    "every weight": ("train.learning_rate=5e-5",),
    "LoRA, rank 8": ("tune.method=lora", "tune.targets=[all-linear]", "train.learning_rate=1e-3"),
    "LoRA on q and v": ("tune.method=lora", "train.learning_rate=1e-3"),
    "bottleneck (Pfeiffer)": ("tune.method=pfeiffer", "train.learning_rate=1e-3"),
    "bottleneck (Houlsby)": ("tune.method=houlsby", "train.learning_rate=1e-3"),
    "(IA)^3": ("tune.method=ia3", "train.learning_rate=1e-2"),
    "prefix, 20 tokens": (
        "tune.method=prefix",
        "train.learning_rate=2e-3",
        'train.groups=[{pattern: "virtual.*", rate: 5}]',
    ),
    "prompt, 20 tokens": (
        "tune.method=prompt",
        "tune.init=vocabulary",
        "train.learning_rate=2e-3",
        'train.groups=[{pattern: "virtual.*", rate: 10}]',
    ),
    "pooler and head": ("tune.freeze=[bert.embeddings,bert.encoder]", "train.learning_rate=2e-3"),
}
RESAMPLES = 10_000


def split(rows: Path, out: Path) -> list[str]:
    """Write the two parts; the labels of the one that is held out."""
    lines = gzip.decompress(rows.read_bytes()).decode().splitlines()
    held_out = lines[::10]
    out.mkdir(parents=True, exist_ok=True)
    (out / "val.jsonl").write_text("\n".join(held_out) + "\n")
    (out / "train.jsonl").write_text("\n".join(line for n, line in enumerate(lines) if n % 10) + "\n")
    return [str(json.loads(line)["label"]) for line in held_out]


def run(model: str, out: Path, method: str, seed: int) -> Path:
    """One run, unless it has ended: its folder."""
    folder = out / f"{method.split(',')[0].replace(' ', '-')}-{seed}"
    words = [str(CONFIG), f"model.path={model}", *METHODS[method], f"train.seed={seed}"]
    ended([*words, f"data.path={out}/train.jsonl", f"data.val={out}/val.jsonl"], folder)
    return folder


def right(folder: Path, labels: list[str]) -> np.ndarray:
    told = [json.loads(line)["label"] for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(told) == len(labels), (folder, len(told), len(labels))
    return np.array([one == label for one, label in zip(told, labels, strict=True)])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Of the mean of [seeds, rows]."""
    rows, random = values.mean(0), np.random.default_rng(0)
    means = rows[random.integers(len(rows), size=(RESAMPLES, len(rows)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main(model: str, rows: str, out: Path, seeds: list[int]) -> None:
    labels = split(Path(rows), out)
    table: dict[str, Any] = {}
    hits = {}
    for method in METHODS:
        folders = [run(model, out, method, seed) for seed in seeds]
        costs = [json.loads((folder / "cost.json").read_text()) for folder in folders]
        hits[method] = np.stack([right(folder, labels) for folder in folders])
        table[method] = {
            "accuracy": float(hits[method].mean()),
            "interval": interval(hits[method]),
            "by_seed": hits[method].mean(1).tolist(),
            "cpu_seconds": float(np.mean([cost["cpu_seconds"] for cost in costs])),
        }
        print(json.dumps({method: table[method]}), flush=True)
    paired = hits["every weight"].astype(float) - hits["LoRA, rank 8"]
    table["every weight - LoRA"] = {"difference": float(paired.mean()), "interval": interval(paired)}
    (out / "table.json").write_text(json.dumps({"held_out": len(labels), "seeds": seeds, "table": table}, indent=1))
    print(json.dumps(table["every weight - LoRA"]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), [int(one) for one in sys.argv[4:]] or [1, 2, 3])
