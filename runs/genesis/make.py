"""Verses of Genesis in French and Portuguese as pairs: 1,533, a line each in both; every tenth block of 15 held out.

    python runs/genesis/make.py "$FLEDGE_DATA/text_nltk_genesis/genesis.jsonl.gz" out/genesis

writes train.jsonl and val.jsonl (source French, target Portuguese) and the training verses of both as text/.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

BLOCK, EVERY = 15, 10


def main(path: str, out: str) -> None:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = {row["id"]: row["text"] for row in map(json.loads, file)}
    sides = [[line.strip() for line in texts[f"genesis/{name}.txt"].split("\n") if line.strip()]
             for name in ("french", "portuguese")]  # fmt: skip
    rows = [{"source": a, "target": b} for a, b in zip(*sides, strict=True)]
    held = [n // BLOCK % EVERY == EVERY - 1 for n in range(len(rows))]
    folder = Path(out)
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for name, wanted in (("train", False), ("val", True)):
        lines = [json.dumps(row, ensure_ascii=False) for row, h in zip(rows, held, strict=True) if h == wanted]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, lines in zip(("french", "portuguese"), sides, strict=True):
        for n, line in enumerate(lines):
            if not held[n]:
                (folder / "text" / f"{name}-{n:04}.txt").write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
