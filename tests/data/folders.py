"""Folders of made-up text whose hold-out is known beforehand."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path


def essay(seed: int, words: int = 900) -> str:
    """Text of which no two seeds share five words in a row."""
    chosen = random.Random(seed)
    return " ".join(f"{chosen.choice('bcdfg')}{chosen.randrange(10**6)}" for _ in range(words))


def held_out_names(wanted: bool, count: int) -> list[str]:
    names = [f"{number}.txt" for number in range(1000)]
    return [n for n in names if (hashlib.sha256(n.encode()).hexdigest()[0] == "0") is wanted][:count]


def make(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    return str(folder)
