"""What a cleaning step is: document in, document out, or the reason why it is dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from fledge.data.document import Document


@dataclass(frozen=True)
class Dropped:
    """A document that goes no further, and why, in words that name a group of documents."""

    reason: str


class Step(Protocol):
    """One named step. A pure function of the document and of what was observed before; `found` counts what it met."""

    found: Counter[str]

    def __call__(self, document: Document) -> Document | Dropped: ...


class Observer(Step, Protocol):
    """A step that may have to see every document, as the steps before leave it, before it can judge one."""

    observes: bool

    def observe(self, document: Document) -> None: ...

    def settle(self) -> None:
        """Called once, after the last document was observed."""
