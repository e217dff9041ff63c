"""`fledge report`: one self-contained HTML page about runs, side by side where there are several. Imports no torch.

The page needs no script and loads nothing; every text that comes from a model, a file or a config is escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.config import read_json
from fledge.errors import ConfigError, DataError
from fledge.lineage import check_output_file, make_folder, write_text_durably
from fledge.log import json_safe
from fledge.train.compare import comparable, differences, final_figures, labels, text_table
from fledge.train.cost import Rates, run_cost
from fledge.train.event_file import write_events
from fledge.train.page import page
from fledge.train.record import read_run

EVALUATION = "evaluation.json"
PAGE = "report.html"


@dataclass(frozen=True)
class ReportConfig:
    """What to report on, and where to write the page."""

    run: Path
    """Run folder of a training verb."""
    also: tuple[Path, ...] = ()
    """Further run folders on the same page: runs to compare with, or the instruction tuning that followed."""
    evaluation: tuple[Path, ...] = ()
    """Results of `fledge evaluate` (JSON), joined; empty: evaluation.json in a run folder, if it is there."""
    out: Path | None = None
    """The page to write, a file ending in .html; unset: report.html in the run folder."""
    tensorboard: Path | None = None
    """A folder to write TensorBoard event files to as well, a folder in it for each run."""
    watts_per_core: float = 10.0
    """Assumed power of one busy CPU core, memory and losses included; energy is estimated from CPU seconds."""
    watts_per_gpu: float = 400.0
    """Assumed power of one busy GPU."""

    def __post_init__(self) -> None:
        for name in ("watts_per_core", "watts_per_gpu"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected 0 or more watts, got {getattr(self, name)}")
        if self.out is not None and self.out.suffix != ".html":
            raise ConfigError(f"out: expected a file ending in .html, got {self.out}")


def report(config: ReportConfig, json: bool = False) -> dict[str, Any]:
    """Write the page; gives its path and size, the runs' seconds and estimated watt-hours, and of each group of runs to
    compare their final `figures` and the `differences` of their configs, which are printed unless `json`.

    Raises DataError if a folder holds no run or the evaluation can't be read.
    """
    runs = [read_run(folder) for folder in (config.run, *config.also)]
    evaluation = read_evaluation(config)
    rates = Rates(config.watts_per_core, config.watts_per_gpu)
    out = config.out or config.run / PAGE
    check_output_file(out)
    make_folder(out.parent)
    text = page(runs, evaluation, rates)
    write_text_durably(out, text)
    costs = [run_cost(run, rates) for run in runs]
    result = {
        "out": str(out),
        "bytes": len(text.encode()),
        "runs": [str(run.folder) for run in runs],
        "seconds": round(sum(cost.seconds for cost in costs), 1),
        "watt_hours": round(sum(cost.watt_hours for cost in costs), 3),
    }
    groups, written = comparable(runs), []
    if groups:
        result["comparisons"] = [
            json_safe({"figures": final_figures(group), "differences": differences(group)}) for group in groups
        ]
    if config.tensorboard is not None:
        pairs = zip(labels(runs), runs, strict=True)
        result["events"] = written = [str(write_events(run, config.tensorboard / label)) for label, run in pairs]
    if not json:
        for group in groups:
            print(text_table(group) + "\n")
        print("\n".join(f"wrote {path}" for path in (out, *written)))
    return result


def read_evaluation(config: ReportConfig) -> dict[str, Any] | None:
    """The evaluation's result, or None when there is none to find."""
    found = list(config.evaluation)
    for path in found:
        if not path.is_file():
            raise DataError(f"{path}: expected the result of fledge evaluate, found none; run evaluate with --out")
    if not found:
        places = [folder / EVALUATION for folder in (*reversed(config.also), config.run)]
        found = [place for place in places if place.is_file()][:1]
    joined: dict[str, Any] = {}
    for path in found:
        try:
            value = read_json(path)
        except ConfigError as error:
            raise DataError(str(error)) from None
        if not isinstance(value, dict):
            raise DataError(f"{path}: expected one object, got {type(value).__name__}")
        joined |= value
    return joined or None
