"""Two domains for runs/forgetting/*.yaml: plays (tinyshakespeare) and verses (Genesis in four languages), each cut into
documents of about 4,500 bytes, so that some of each are held out.

    python runs/forgetting/make.py "$FLEDGE_DATA/text_tinyshakespeare/input.txt" \\
        "$FLEDGE_DATA/text_nltk_genesis/genesis.jsonl.gz" out/forgetting
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

LEAST_BYTES = 4500
LANGUAGES = ("finnish", "french", "german", "portuguese")


def main(plays: str, verses: str, out: str) -> None:
    write(Path(out) / "plays", Path(plays).read_text(encoding="utf-8"), "play")
    with gzip.open(verses, "rt", encoding="utf-8") as file:
        texts = {row["id"]: row["text"] for row in map(json.loads, file)}
    for name in LANGUAGES:
        write(Path(out) / "verses", texts[f"genesis/{name}.txt"], name)


def write(folder: Path, text: str, name: str) -> None:
    """Files of whole lines, each of at least so many bytes; what is left at the end is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    n, size = 0, 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line.encode())
        if size >= LEAST_BYTES:
            (folder / f"{name}-{n:03}.txt").write_text("".join(lines), encoding="utf-8")
            lines, size, n = [], 0, n + 1


if __name__ == "__main__":
    main(*sys.argv[1:])
