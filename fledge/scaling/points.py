"""The points of a sweep: one finished run each, as lines of points.jsonl. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fledge.config import to_dict
from fledge.errors import DataError
from fledge.lineage import sha256_json, write_text_durably
from fledge.scaling.laws import FLOPS_PER_PARAMETER_TOKEN

Count = Literal["total", "non_embedding"]
POINTS = "points.jsonl"
MOST_POINTS = 100_000
NUMBERS = ("parameters", "parameters_non_embedding", "tokens", "loss")


@dataclass(frozen=True)
class Point:
    """One run: what it had and the loss it came to.

    `parameters` counts everything (tied weights once), `parameters_non_embedding` leaves out embeddings, position
    tables and the output matrix. `loss`: nats a token over all held-out text. `flops` counts attention's scores too,
    where 6 N D doesn't. `budget`: the FLOPs it was made for, 0 if for tokens. `curve`: (tokens seen, smoothed training
    loss). `data`: digest of what it was trained on, `digest`: of the model it published.
    """

    parameters: float
    parameters_non_embedding: float
    tokens: float
    loss: float
    flops: float = 0.0
    budget: float = 0.0
    seed: int = 0
    run: str = ""
    digest: str = ""
    data: str = ""
    curve: tuple[tuple[float, float], ...] = field(default=())

    def size(self, count: Count) -> float:
        """N."""
        return self.parameters if count == "total" else self.parameters_non_embedding

    def products(self, count: Count) -> float:
        """C = 6 N D."""
        return FLOPS_PER_PARAMETER_TOKEN * self.size(count) * self.tokens


def read_points(path: str | Path) -> list[Point]:
    """The points of a file, in its order. Raises DataError naming the line for anything that is no point: no number
    may be missing, NaN, infinite, zero or negative."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a sweep's points, can't read them ({type(error).__name__})") from None
    if len(lines) > MOST_POINTS:
        raise DataError(f"{path}: expected at most {MOST_POINTS:,} points, got {len(lines):,}; fit a part of them")
    return [read_point(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def read_point(line: str, at: str) -> Point:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{at}: expected one JSON object, got {line[:40]!r}; run the sweep again") from None
    if not isinstance(found, dict):
        raise DataError(f"{at}: expected one JSON object, got {type(found).__name__}")
    values: dict[str, Any] = {}
    for name in NUMBERS:
        values[name] = positive(
            found.get(name, found.get("parameters") if name.startswith("param") else None), name, at
        )
    for name in ("flops", "budget"):
        values[name] = positive(found[name], name, at) if found.get(name) else 0.0
    seed = found.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise DataError(f"{at}: expected a whole number as seed, got {seed!r:.40}")
    for name in ("run", "digest", "data"):
        values[name] = str(found.get(name, ""))
    curve = found.get("curve", [])
    if not isinstance(curve, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in curve):
        raise DataError(f"{at}: expected a curve of [tokens, loss] pairs, got {str(curve)[:40]!r}")
    pairs = tuple((positive(t, "curve's tokens", at), positive(v, "curve's loss", at)) for t, v in curve)
    return Point(**values, seed=seed, curve=pairs)


def positive(value: Any, name: str, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{at}: expected a number as {name}, got {value!r:.40}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise DataError(f"{at}: expected {name} to be finite and above 0, got {number}; leave that run out")
    return number


def write_points(path: Path, points: Sequence[Point]) -> None:
    """All points, one a line, written durably."""
    write_text_durably(path, "".join(json.dumps(to_dict(point), allow_nan=False) + "\n" for point in points))


def points_digest(points: Sequence[Point]) -> str:
    """One digest of what was measured: numbers, seeds and the runs' digests, whatever their order or folder."""
    return sha256_json(sorted([p.parameters, p.tokens, p.loss, p.seed, p.digest] for p in points))


def data_of(points: Sequence[Point]) -> str:
    """The digest of the data that all points share, or ''. Raises DataError if they don't."""
    found = sorted({point.data for point in points if point.data})
    if len(found) > 1:
        raise DataError(
            f"points: expected runs on the same data, got {len(found)} ({', '.join(d[:12] for d in found[:3])}…); "
            "their losses don't compare"
        )
    return found[0] if found else ""
