"""`Cleaner`: the steps in their order, and what each of them did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from fledge.data.cleaning.boilerplate import Boilerplate
from fledge.data.cleaning.config import CleanConfig, PersonalKind
from fledge.data.cleaning.contamination import Contamination
from fledge.data.cleaning.language import Language
from fledge.data.cleaning.length import Length
from fledge.data.cleaning.personal import Personal, mask
from fledge.data.cleaning.repair import Repair
from fledge.data.cleaning.repetition import Repetition
from fledge.data.cleaning.step import Dropped, Observer, Step
from fledge.data.cleaning.symbols import Symbols
from fledge.data.document import Document

STEPS: dict[str, Callable[[Any], Step]] = {  # near_duplicates is no step of one document: corpus.py
    "repair": Repair,
    "boilerplate": Boilerplate,
    "length": Length,
    "repetition": Repetition,
    "symbols": Symbols,
    "language": Language,
    "personal": Personal,
    "contamination": Contamination,
}
SHOWN_EXAMPLES = 3
SHOWN_CHARACTERS = 80


@dataclass
class StepTally:
    """What one step was given and did, for the card and for people."""

    step: str
    hidden: tuple[PersonalKind, ...] = ()
    """Kinds of personal data that examples don't show."""
    documents: int = 0
    bytes: int = 0
    dropped_documents: int = 0
    dropped_bytes: int = 0
    changed_documents: int = 0
    changed_bytes: int = 0
    """Bytes that changed documents became shorter by."""
    reasons: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    dropped: list[dict[str, str]] = field(default_factory=list)
    changed: list[dict[str, str]] = field(default_factory=list)

    def drop(self, document: Document, reason: str, n_bytes: int) -> None:
        self.dropped_documents += 1
        self.dropped_bytes += n_bytes
        self.reasons[reason] += 1
        if len(self.dropped) < SHOWN_EXAMPLES:
            example = {"path": document.path, "reason": reason}
            if self.step != "personal":  # what it found is not to be kept
                example["begins"] = self.excerpt(document.text, 0)
            self.dropped.append(example)

    def change(self, before: Document, after: Document, shorter: int) -> None:
        self.changed_documents += 1
        self.changed_bytes += shorter
        if len(self.changed) < SHOWN_EXAMPLES:
            start = max(0, first_difference(before.text, after.text) - SHOWN_CHARACTERS // 4)
            example = {"path": before.path, "after": self.excerpt(after.text, start)}
            if self.step != "personal":
                example["before"] = self.excerpt(before.text, start)
            self.changed.append(example)

    def excerpt(self, text: str, start: int) -> str:
        """A few characters from `start` on, masked before they are cut off."""
        return mask(text[start : start + 4 * SHOWN_CHARACTERS], self.hidden)[0][:SHOWN_CHARACTERS]

    def facts(self) -> dict[str, Any]:
        """As plain values, without what is empty."""
        rows: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name == "hidden":
                continue
            rows[name] = dict(sorted(value.items())) if isinstance(value, Counter) else value
        return {name: value for name, value in rows.items() if value not in ({}, [])}


class Cleaner:
    """Takes documents through the steps: `prepare` with all of them, then call it with each."""

    def __init__(self, config: CleanConfig):
        names = [name for name in config.steps if name in STEPS]
        self.steps = [STEPS[name](getattr(config, name)) for name in names]
        self.hidden = config.personal.kinds if "personal" in names else ()
        self.tallies = [StepTally(name, self.hidden) for name in names]

    def prepare(self, documents: Callable[[], Iterator[Document]]) -> None:
        """Let each step that must see all documents see them, once for each such step."""
        for at, step in enumerate(self.steps):
            if not getattr(step, "observes", False):
                continue
            observer = cast(Observer, step)
            for document in documents():
                left = self.through(document, at)
                if isinstance(left, Document):
                    observer.observe(left)
            observer.settle()
        for step in self.steps:
            step.found.clear()

    def through(self, document: Document, n_steps: int) -> Document | Dropped:
        """What the first steps leave of a document; nothing is counted."""
        for step in self.steps[:n_steps]:
            left = with_text(step(document))
            if isinstance(left, Dropped):
                return left
            document = left
        return document

    def __call__(self, document: Document) -> Document | Dropped:
        """What all steps leave of a document; a reason begins with the name of its step."""
        n_bytes = document.n_bytes
        for step, tally in zip(self.steps, self.tallies, strict=True):
            tally.documents += 1
            tally.bytes += n_bytes
            left = with_text(step(document))
            if isinstance(left, Dropped):
                tally.drop(document, left.reason, n_bytes)
                return Dropped(f"{tally.step}: {left.reason}")
            if left is not document and left.text != document.text:
                shorter = n_bytes - left.n_bytes
                tally.change(document, left, shorter)
                n_bytes -= shorter
            document = left
        return document

    def facts(self) -> list[dict[str, Any]]:
        """What each step did, in order, as plain values."""
        rows = []
        for step, tally in zip(self.steps, self.tallies, strict=True):
            tally.found = step.found
            report = step.report() if isinstance(step, Contamination) else {}
            rows.append(tally.facts() | report)
        return rows


def with_text(left: Document | Dropped) -> Document | Dropped:
    """A document that holds nothing but space any more is dropped."""
    return left if isinstance(left, Dropped) or left.text.strip() else Dropped("nothing left")


def first_difference(a: str, b: str) -> int:
    """The index of the first character that differs, by halving."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
