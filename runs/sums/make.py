"""Sums of two numbers below 100 as files for runs/sums/*.yaml: `python runs/sums/make.py FOLDER`.

text.txt: 2,000 sums, one a line, to pre-train on; prompts.jsonl: 4,000 others to learn from by rewards; val.jsonl: 500
others.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path


def main(folder: Path) -> None:
    pairs = [(a, b) for a in range(100) for b in range(100)]
    random.Random(1).shuffle(pairs)
    text, prompts, held_out = pairs[:2000], pairs[2000:6000], pairs[6000:6500]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{a}+{b}={a + b}\n" for _ in range(30) for a, b in random.Random(2).sample(text, len(text))]
    (folder / "text.txt").write_text("".join(lines))
    for name, chosen in (("prompts", prompts), ("val", held_out)):
        rows = [{"prompt": f"\n{a}+{b}=", "answer": a + b} for a, b in chosen]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
