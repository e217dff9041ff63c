"""Halves of a file of rows, by turns: `python runs/alpaca/split.py ROWS.jsonl.gz OUT` writes train and val.jsonl."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path


def main(rows: Path, out: Path) -> None:
    lines = gzip.decompress(rows.read_bytes()).decode().splitlines()
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", lines[::2]), ("val", lines[1::2])):
        (out / f"{name}.jsonl").write_text("\n".join(part) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
