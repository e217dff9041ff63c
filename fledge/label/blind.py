"""Which of two answers stands left: a coin for each item and annotator, the same whenever it is asked.

The page and whoever reads its traffic see two texts, A and B; the seed that tells them apart stays in the database.
"""

from __future__ import annotations

import hashlib
import json

A, B, TIE, SKIP = "a", "b", "tie", "skip"
FIRST, SECOND = "first", "second"


def swapped(seed: str, annotator: str, item: int) -> bool:
    """Whether the item's second answer is A: the lowest bit of SHA-256 of seed, annotator and item."""
    key = json.dumps([seed, annotator, item])
    return bool(hashlib.sha256(key.encode()).digest()[0] & 1)


def unblinded(choice: str, swap: bool) -> str:
    """What was said of A or B as said of the item's first or second answer; a tie and a skip as they are."""
    if choice in (TIE, SKIP):
        return choice
    return SECOND if (choice == A) == swap else FIRST


def first_shown_won(choice: str, swap: bool) -> bool | None:
    """Whether A won; None for a tie and a skip."""
    return None if choice in (TIE, SKIP) else (choice == SECOND) == swap
