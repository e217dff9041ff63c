"""What an annotator can do: see the next item, vote, take the last vote back, have the skipped ones again.

Each call is safe to repeat: a vote is known by its token, and what was undone stays undone.
"""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fledge.errors import RequestError
from fledge.label.blind import SKIP, TIE, swapped, unblinded
from fledge.label.items import Item, plain
from fledge.label.store import Store, Taken, Vote

MAX_NAME_CHARACTERS = 64
ATTEMPTS = 5


@dataclass(frozen=True)
class Ballot:
    """A vote as the page sends it. `choice`: "a", "b", "tie" or "skip", of the texts as they stood there; `token`:
    drawn by the page for each time that it shows an item; `seconds` that it was seen."""

    annotator: str
    item: int
    choice: str
    token: str
    seconds: float = 0.0
    reason: str = ""
    reasons: tuple[str, ...] = ()


class Conflict(RequestError):
    """What was asked for contradicts what is stored: another tab was quicker (HTTP 409)."""


class Desk:
    """The labelling of one set of items. Safe to call from several threads."""

    def __init__(self, store: Store, now: Callable[[], float] = time.time):
        self.store = store
        self.now = now
        self.lock = threading.Lock()
        self.seed = store.meta()["seed"]
        self.n_items = store.n_items()

    def state(self, annotator: str) -> dict[str, Any]:
        """The annotator's next item (None when all are done), counts, and the number of the vote that can be undone."""
        with self.lock:
            return self.state_at(annotator, self.store.next_number(annotator))

    def vote(self, ballot: Ballot) -> dict[str, Any]:
        """The state after the vote, which is on the disk. Raises Conflict where the annotator has judged the item
        otherwise, RequestError where there is no such item."""
        with self.lock:
            if not 1 <= ballot.item <= self.n_items:
                raise RequestError(f"item: expected 1..{self.n_items}, got {ballot.item}", "item")
            self.keep(ballot)
            return self.state_at(ballot.annotator, self.store.next_number(ballot.annotator))

    def keep(self, ballot: Ballot) -> None:
        """Store a vote that isn't there. Another process may be quicker with this item, or with this number."""
        for _ in range(ATTEMPTS):
            if self.known(ballot):
                return
            try:
                with self.store.writing():
                    self.store.add(self.vote_of(ballot))
                return
            except Taken:
                continue
        raise Conflict("annotator: votes under this name come from elsewhere at the same time", "annotator", "busy")

    def known(self, ballot: Ballot) -> bool:
        """Whether this very vote was given before. Raises Conflict where another one was."""
        earlier = self.store.by_token(ballot.token)
        if earlier is not None and (earlier.annotator, earlier.item) == (ballot.annotator, ballot.item):
            return True
        if earlier is not None:
            raise Conflict("token: this vote is of another item or annotator", "token", "token_used")
        if self.store.of_item(ballot.annotator, ballot.item) is not None:
            raise Conflict("item: it was judged before, in another tab perhaps", "item", "already_judged")
        return False

    def vote_of(self, ballot: Ballot) -> Vote:
        swap = swapped(self.seed, ballot.annotator, ballot.item)
        return Vote(
            token=ballot.token,
            annotator=ballot.annotator,
            number=self.store.next_vote(ballot.annotator),
            item=ballot.item,
            choice=unblinded(ballot.choice, swap),
            swapped=swap,
            seconds=ballot.seconds,
            reason=ballot.reason,
            reasons=ballot.reasons,
            voted_at=self.now(),
        )

    def undo(self, annotator: str, number: int) -> dict[str, Any]:
        """Take back the annotator's vote `number`, their last one; the state shows its item again. Raises Conflict
        where it isn't the last, RequestError where there is none."""
        with self.lock:
            vote = self.store.numbered(annotator, number)
            if vote is None:
                raise RequestError(f"vote: expected one of yours, got {number}", "vote")
            last = self.store.last(annotator)
            if not vote.undone and (last is None or last.number != number):
                raise Conflict("vote: only the last one can be undone, and another was given since", "vote", "not_last")
            if not vote.undone:
                with self.store.writing():
                    self.store.undo(annotator, number)
            free = self.store.of_item(annotator, vote.item) is None
            return self.state_at(annotator, vote.item if free else self.store.next_number(annotator))

    def again(self, annotator: str) -> dict[str, Any]:
        """The state once every item that the annotator skipped is to be judged again."""
        with self.lock:
            with self.store.writing():
                self.store.undo_skips(annotator)
            return self.state_at(annotator, self.store.next_number(annotator))

    def state_at(self, annotator: str, number: int | None) -> dict[str, Any]:
        counts, last = self.store.counts(annotator), self.store.last(annotator)
        done = sum(counts.values())
        return {
            "annotator": annotator,
            "counts": {
                "items": self.n_items,
                "done": done,
                "ties": counts.get(TIE, 0),
                "skipped": counts.get(SKIP, 0),
            },
            "last": last.number if last is not None else None,
            "item": None if number is None else self.shown(annotator, number),
        }

    def shown(self, annotator: str, number: int) -> dict[str, Any]:
        item = self.store.item(number)
        assert item is not None
        a, b = sides(item, swapped(self.seed, annotator, number))
        return {"number": number, "prompt": plain(item.prompt), "a": a, "b": b}


def sides(item: Item, swap: bool) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """A and B."""
    first, second = plain(item.first), plain(item.second)
    return (second, first) if swap else (first, second)


def clean_name(name: str) -> str:
    """An annotator's name as it is stored: without capitals, so that Ana and ana are one. Raises RequestError."""
    found = " ".join(unicodedata.normalize("NFC", name.casefold()).split())
    if not 1 <= len(found) <= MAX_NAME_CHARACTERS or not found.isprintable():
        raise RequestError(
            f"annotator: expected a name of 1..{MAX_NAME_CHARACTERS} printable characters, got {found!r:.80}"
        )
    return found
