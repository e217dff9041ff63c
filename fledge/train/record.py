"""What a run folder remembers: run.yaml, log.jsonl, card. Read only; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fledge.config import read_yaml
from fledge.errors import CheckpointError, ConfigError, DataError
from fledge.lineage import CARD, read_card
from fledge.log import read_log

Event = dict[str, Any]
Phase = Literal["data", "forward", "backward", "optimizer", "communication", "checkpoint", "evaluation", "other"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""The phases of a run's wall time, as events tell them under `times`."""


@dataclass(frozen=True)
class RunRecord:
    """One run: its `events` oldest first, `run_yaml` as text, `cards` by the name of the artefact they describe."""

    folder: Path
    run_yaml: str
    config: dict[str, Any]
    events: tuple[Event, ...]
    cards: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.name

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.get("kind") == kind]

    @property
    def start(self) -> Event:
        """The facts of the (last) start: config, machine, parameters, matmul peak; empty if none was logged."""
        begun = self.of("start") + self.of("resume")
        return begun[-1] if begun else {}

    @property
    def end(self) -> Event:
        """The closing event; empty for a run that isn't finished."""
        ended = self.of("end")
        return ended[-1] if ended else {}

    def series(self, kind: str, key: str) -> tuple[tuple[float, float], ...]:
        """(step, value) of every event of a kind that has the key; non-finite values stay in, as floats."""
        points = [(number(event.get("step")), number(event.get(key))) for event in self.of(kind)]
        return tuple((step, value) for step, value in points if step is not None and value is not None)

    def last(self, kind: str, key: str) -> float | None:
        points = self.series(kind, key)
        return points[-1][1] if points else None

    @property
    def seconds(self) -> float:
        """Wall seconds of training over all of its lives."""
        return number(self.end.get("seconds")) or self.last("step", "seconds") or 0.0

    @property
    def cpu_seconds(self) -> float | None:
        """CPU seconds of all training processes, known once the run has ended."""
        return number(self.end.get("cpu_seconds"))


def read_run(folder: Path) -> RunRecord:
    """The record of a run folder. Raises DataError if it holds no log."""
    path = folder / "log.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: expected a run's log, found none; give the run folder of a training verb")
    try:
        events = [event for event in read_log(path) if isinstance(event, dict)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as UTF-8 text ({type(error).__name__})") from None
    try:
        text = (folder / "run.yaml").read_text(encoding="utf-8")
        config = read_yaml(folder / "run.yaml")
    except (OSError, UnicodeDecodeError, ConfigError):
        text, config = "", {}
    return RunRecord(folder, text, config, tuple(events), read_cards(folder, config))


def read_cards(folder: Path, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The cards of the model that the run published and of what it was made from, where they are still there."""
    places = {"model": folder / "model"}
    data, model = (group if isinstance(group, dict) else {} for group in (config.get("data"), config.get("model")))
    made_from = [("data", data.get("path")), ("base model", model.get("path"))]
    sources = data.get("mixture")
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict):
            made_from.append((f"data {source.get('path')}", source.get("path")))
    for role, path in made_from:
        if isinstance(path, str) and path:
            # A file (chat.jsonl) is described by its folder's card, a run folder by its model's.
            at = Path(path) if Path(path).is_dir() else Path(path).parent
            places[role] = at / "model" if (at / "model" / CARD).is_file() else at
    cards = {}
    for role, place in places.items():
        try:
            cards[role] = read_card(place)
        except CheckpointError:
            continue  # a report on an unfinished or moved run shows what is left
    return cards


def number(value: Any) -> float | None:
    """A float from a log's number or from its text for a non-finite one; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:  # JSON knows whole numbers of any length
            return math.inf if value > 0 else -math.inf
    return float(value) if value in ("nan", "inf", "-inf") else None


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
