"""One training run as a table of losses and gradient norms, and how two of them compare."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import Interrupted
from fledge.log import read_log
from fledge.recipes.config import PretrainConfig
from fledge.recipes.pretrain import pretrain
from tests.data.corrupted import story, wordpiece
from tests.recipes.objectives import config_of

STEPS, ROWS = 8, 8
TOLERANCE = 1e-5  # of a loss in nats, and of a gradient norm divided by its size where that is above 1
ULPS = 2  # a mean residual of so many last places of a loss is rounding, whatever its sign
FAMILIES = {"causal": "llama", "masked": "bert", "masked+next": "bert", "spans": "t5"}


@dataclass(frozen=True)
class Steps:
    """Losses and gradient norms of a run, one a step."""

    losses: list[float]
    norms: list[float]


@dataclass(frozen=True)
class Residuals:
    """How one run differs from another: the largest differences, the mean one of the losses and its bound."""

    loss: float
    norm: float
    mean: float
    bound: float

    @property
    def equal(self) -> bool:
        """Within the tolerance at every step, and without a bias that rounding does not explain."""
        return self.loss <= TOLERANCE and self.norm <= TOLERANCE and self.mean <= self.bound


def compared(a: Steps, b: Steps) -> Residuals:
    differences = [x - y for x, y in zip(a.losses, b.losses, strict=True)]
    norms = [abs(x - y) / max(1.0, x) for x, y in zip(a.norms, b.norms, strict=True)]
    noise = 3 * statistics.stdev(differences) / math.sqrt(len(differences))
    last_place = 2.0**-23 * 2.0 ** math.floor(math.log2(max(a.losses)))
    bound = max(noise, ULPS * last_place)
    return Residuals(max(map(abs, differences)), max(norms), abs(statistics.fmean(differences)), bound)


def write_text(folder: Path) -> dict[str, str]:
    """Stories of very unequal lengths and a tokenizer for them: the `data` section of a config."""
    (folder / "text").mkdir()
    for number in range(24):
        (folder / "text" / f"{number}.txt").write_text(story(number, 2 + number * number % 23))
    wordpiece().save(folder / "tokenizer")
    return {"path": str(folder / "text"), "tokenizer": str(folder / "tokenizer")}


def run_config(objective: str, data: dict[str, str], folder: Path, **changes: Any) -> PretrainConfig:
    """A run of `STEPS` steps; `changes` go into its sections."""
    train = {"steps": STEPS, "rows": ROWS, "learning_rate": 1e-3, "eval_every_steps": 0, "save_every_steps": 0}
    sections = {"data": data, "train": train, "run": {"dir": str(folder)}, "infill": {"rate": 0.0}}
    for name, section in changes.items():
        sections[name] = {**sections.get(name, {}), **section}
    return config_of(objective, FAMILIES[objective], **sections)


def trained(config: PretrainConfig) -> Steps:
    """Train to the end, going on as often as a run stops by itself."""
    while True:
        try:
            pretrain(config)
        except Interrupted:
            continue
        return steps_of(Path(config.run.dir))


def steps_of(folder: Path) -> Steps:
    rows = [row for row in read_log(folder / "log.jsonl") if row["kind"] == "step"]
    return Steps([row["loss"] for row in rows], [row["gradient_norm"] for row in rows])
