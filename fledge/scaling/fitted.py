"""`fledge scale fit`: every law that a sweep's points suffice for, as JSON, as a page and as a table.

Imports no torch.
"""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.config import read_json
from fledge.errors import ConfigError, DataError
from fledge.lineage import check_output_file, make_folder, sha256_json, write_text_durably
from fledge.scaling.config import FitConfig
from fledge.scaling.fit import (
    FitSettings,
    fit_envelope,
    fit_isoflop,
    fit_law,
    fit_surface,
    or_missing,
)
from fledge.scaling.page import page
from fledge.scaling.points import POINTS, data_of, points_digest, read_points

FORMAT = 1
FIT = "fit.json"
LEAST_POINTS = 2


def fit_points(config: FitConfig, json: bool = False) -> dict[str, Any]:
    """Fit every law that the points suffice for, write the result and its page, and show a table.

    Raises DataError for points that can't be read, that are of different data, or that determine no law at all.
    """
    path = config.points / POINTS if config.points.is_dir() else config.points
    points = read_points(path)
    if len(points) < LEAST_POINTS:
        raise DataError(f"{path}: expected several points, got {len(points)}; a law needs runs that differ")
    out = config.out or path.with_name(FIT)
    check_output_file(out)
    check_output_file(out.with_suffix(".html"))
    settings = FitSettings(config.count, config.bootstrap, config.seed, config.delta)
    found: dict[str, Any] = {
        "format": FORMAT,
        "count": config.count,
        "points": len(points),
        "points_digest": points_digest(points),
        "data": data_of(points),
        "bootstrap": config.bootstrap,
        "seed": config.seed,
        "largest": {
            "parameters": max(p.size(config.count) for p in points),
            "tokens": max(p.tokens for p in points),
            "flops": max(p.products(config.count) for p in points),
        },
        "approach_1": or_missing(lambda: fit_envelope(points, settings)),
        "approach_2": or_missing(lambda: fit_isoflop(points, settings)),
        "approach_3": or_missing(lambda: fit_surface(points, settings)),
        "laws": {name: or_missing(lambda name=name: fit_law(points, name, settings)) for name in "NDC"},  # type: ignore[misc]
    }
    parts = [found["approach_1"], found["approach_2"], found["approach_3"], *found["laws"].values()]
    if all("missing" in part for part in parts):
        raise DataError(f"{path}: expected points that determine a law, got none that do ({parts[2]['missing']})")
    found["digest"] = sha256_json(found)
    make_folder(out.parent)
    write_text_durably(out, json_text.dumps(found, indent=1, allow_nan=False) + "\n")
    write_text_durably(out.with_suffix(".html"), page(found, points, out.parent.absolute().name))
    if not json:
        print_fit(found, out)
    brief = {name: short_of(part) for name, part in found.items() if name != "laws"}
    return brief | {"laws": {n: short_of(part) for n, part in found["laws"].items()}, "out": str(out)}


def short_of(part: Any) -> Any:
    """A part of the result without its long lists."""
    return {k: v for k, v in part.items() if k not in ("samples", "residuals")} if isinstance(part, dict) else part


def read_fit(path: Path) -> dict[str, Any]:
    """The result of `fit_points`, whose digest holds. Raises DataError."""
    try:
        found = read_json(path)
    except ConfigError as error:
        raise DataError(str(error)) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{path}: expected the result of fledge scale fit in format {FORMAT}, got something else")
    if found.get("digest") != sha256_json({k: v for k, v in found.items() if k != "digest"}):
        raise DataError(f"{path}: expected its own digest, got another; the file was changed, fit again")
    return found


def print_fit(found: dict[str, Any], out: Path) -> None:
    """A plain table of laws and exponents, with intervals where there are any."""
    print(f"{found['points']} points, N counts {found['count'].replace('_', '-')} parameters; {out}\n")
    rows: list[tuple[str, Sequence[str], dict[str, Any]]] = [
        ("L(N, D) (approach 3)", ("E", "A", "alpha", "B", "beta", "a", "b"), found["approach_3"]),
        ("envelope (approach 1)", ("a", "b"), found["approach_1"]),
        ("IsoFLOP (approach 2)", ("a", "b"), found["approach_2"]),
        *((f"L({name})", ("E", "A", "alpha"), law) for name, law in found["laws"].items()),
    ]
    for title, names, part in rows:
        if "missing" in part:
            print(f"{title:<22} not fitted: {part['missing']}")
            continue
        for index, name in enumerate(names):
            low, high = part.get("intervals", {}).get(name, (None, None))
            between = f"  ({part['no_intervals']})" if index == 0 and "no_intervals" in part else ""
            between = between if low is None else f"  {low:.4g} .. {high:.4g}"
            print(f"{title if index == 0 else '':<22} {name:<6} {part[name]:>12.5g}{between}")
    print("\nN grows as C^a, D as C^b; ranges are 95 % bootstrap intervals.")
