"""What needs no model: for each held-out verse the Portuguese of the training verse whose French shares most words
with it (Jaccard), and the French left as it is; scored as `fledge finetune` scores.

    python runs/genesis/nearest.py out/genesis
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from fledge.evals.text_scores import text_scores


def main(folder: str) -> None:
    train, val = (
        [json.loads(line) for line in (Path(folder) / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "val")
    )
    known = [(words(row["source"]), row["target"]) for row in train]
    right = [row["target"] for row in val]
    nearest = [max(known, key=lambda one: shared(one[0], asked))[1] for asked in (words(r["source"]) for r in val)]
    for name, written in (("nearest", nearest), ("copy", [row["source"] for row in val])):
        print(name, json.dumps({key: score.as_dict() for key, score in text_scores(written, right).items()}))


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def shared(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


if __name__ == "__main__":
    main(sys.argv[1])
