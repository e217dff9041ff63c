"""Vectors on disk by the digest of what they were made from, checked by their own digest when they are read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fledge.lineage import sha256_file, write_text_durably
from fledge.log import warn
from fledge.recipes.npy_file import npy_rows


def kept_vectors(folder: Path, digest: str, make: Callable[[], np.ndarray]) -> tuple[np.ndarray, bool]:
    """float32 [N, W] that `make` gives, or gave under this digest before, and whether it was before. A file that is
    damaged is made anew. Raises ConfigError where it can't be written."""
    path, card = folder / f"{digest}.npy", folder / f"{digest}.json"
    if path.is_file() and card.is_file():
        if stated(card) == sha256_file(path):
            return np.load(path, allow_pickle=False), True
        warn(f"{path}: expected the vectors that were written, got others; making them anew")
    found = make()
    with npy_rows(path, found.shape[1]) as rows:
        rows.add(found)
    write_text_durably(card, json.dumps({"sha256": sha256_file(path), "rows": len(found), "width": found.shape[1]}))
    return found, False


def stated(card: Path) -> str:
    """The digest in a card; empty for a card that is none."""
    try:
        return str(json.loads(card.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
