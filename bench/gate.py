"""Is one result worse than another? `python bench/gate.py BEFORE.json AFTER.json` says where, and exits 1 if anywhere.

Compared are figures that both files have at the same place: those that should be high (tokens a second, goodput) and
the medians of those that should be low (milliseconds). Tails are left out: they move more between two runs of one
commit than any change worth finding.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOLERANCE = 0.05  # what three runs of one commit may differ by
HIGH = frozenset({"tokens_per_second", "goodput", "good_requests_per_second", "throughput_of_peak", "batching_gain"})
LOW = frozenset({"p50", "to_first_token_seconds"})


def figures(tree: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """(place, number) of every figure in a result that the gate looks at."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name in HIGH | LOW and isinstance(value, int | float):
                yield f"{place}{name}", float(value)
            else:
                yield from figures(value, f"{place}{name} ")


def worse(before: Any, after: Any, tolerance: float = TOLERANCE) -> list[str]:
    """The figures of `after` that are more than `tolerance` worse than those of `before`."""
    old, found = dict(figures(before)), []
    for place, value in figures(after):
        was = old.get(place)
        if was is None or was <= 0:
            continue
        high = place.rsplit(" ", 1)[-1] in HIGH
        loss = 1 - value / was if high else value / was - 1
        if loss > tolerance:
            found.append(f"{place}: {was:g} before, {value:g} now, {100 * loss:.1f} % worse")
    return found


def main() -> None:
    before, after = (json.loads(Path(word).read_text()) for word in sys.argv[1:3])
    found = worse(before, after)
    print("\n".join(found) or f"nothing is more than {100 * TOLERANCE:g} % worse")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
