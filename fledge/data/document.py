"""`Document`: a text with a name. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text and its relative path, which names it and decides whether it is held out."""

    path: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Length in UTF-8 bytes."""
        return len(self.text.encode())

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the text's UTF-8 bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def is_held_out(path: str) -> bool:
    """True for one path in sixteen: those whose SHA-256 begins with hex digit 0."""
    return hashlib.sha256(path.encode()).hexdigest()[0] == "0"
