"""Cells of bench/forward.py once more, in fresh processes each time: what differs from pair to pair of processes.

On two threads a process may find its threads slow to wake all its life, or quick: with the same code attention over 128
tokens took 0.4 or 1.4 ms in processes started one after the other. The rounds of one pair don't show that. Here every
cell is measured by `PAIRS` pairs of processes, and its figure is the median of theirs.

Words choose a part as in bench/forward.py: `python bench/forward_again.py gpt2 128 forward compiled 2`.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys

from forward import AXES, ROUNDS, code_digest, measured
from harness import RESULTS, keep

PAIRS = 3


def main() -> None:
    words, path = sys.argv[1:], RESULTS / "forward_again.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else {}
    for cell in itertools.product(*([value for value in axis if value in words] or axis for axis in AXES)):
        found = [measured(cell, ROUNDS)["ratio"] for _ in range(PAIRS)]
        key = " ".join(cell)
        cells[key] = {"code": code_digest(), "ratio": statistics.median(found), "of_pairs": found}
        print(f"{key}: {cells[key]['ratio']:.3f} ({min(found):.3f}-{max(found):.3f})", file=sys.stderr)
        keep("forward_again", {"cells": cells}, quiet=True)


if __name__ == "__main__":
    main()
