"""`fledge report`: one self-contained HTML page about a run. Imports no torch.

The page needs no script and loads nothing; every text that comes from a model, a file or a config is escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.config import read_json
from fledge.errors import ConfigError, DataError
from fledge.lineage import check_output_file, make_folder, write_text_durably
from fledge.train.cost import Rates, run_cost
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
    """Further run folders on the same page, for example the instruction tuning that followed."""
    evaluation: tuple[Path, ...] = ()
    """Results of `fledge evaluate` (JSON), joined; empty: evaluation.json in a run folder, if it is there."""
    out: Path | None = None
    """The page to write, a file ending in .html; unset: report.html in the run folder."""
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
    """Write the page; gives its path and size, and the runs' seconds and estimated watt-hours.

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
    if not json:
        print(f"wrote {out}")
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
