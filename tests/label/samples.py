"""Small files of pairs, and desks on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fledge.label.desk import Ballot, Desk
from fledge.label.items import Items, read_items
from fledge.label.places import make_labels
from fledge.label.store import Store


def pairs(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {i}?", "chosen": f"Good {i}.", "rejected": f"Bad {i}."} for i in range(1, n + 1)]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def items_of(folder: Path, n: int = 6) -> Items:
    return read_items(write_rows(folder / "pairs.jsonl", pairs(n)))


def new_store(folder: Path, n: int = 6, seed: int = 7) -> Store:
    return make_labels(str(folder / "labels.db"), items_of(folder, n), "pairs.jsonl", seed)


def new_desk(folder: Path, n: int = 6, seed: int = 7) -> Desk:
    return Desk(new_store(folder, n, seed))


def say(desk: Desk, annotator: str, item: int, verdict: str, token: str = "", seconds: float = 1.0) -> dict[str, Any]:
    """A vote by what the file's answers are: "good", "bad", "tie" or "skip", whatever stands left."""
    shown = desk.shown(annotator, item)
    choice = verdict
    if verdict in ("good", "bad"):
        good_left = shown["a"][0]["content"].startswith("Good")
        choice = "a" if good_left == (verdict == "good") else "b"
    return desk.vote(Ballot(annotator, item, choice, token or f"{annotator}-{item}", seconds))
