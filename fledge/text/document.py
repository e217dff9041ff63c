"""`Document`: one text with a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Document:
    """One text and its path, which names it and decides whether it is held out; `source` is the number of the source
    it is from, where a corpus has several."""

    path: str
    text: str
    source: int = 0
    utf8: bytes | None = field(default=None, init=False, compare=False, repr=False)  # `replace` doesn't take it along

    @classmethod
    def of(cls, path: str, text: str, utf8: bytes | None, source: int = 0) -> Document:
        """A document whose UTF-8 is known where its reader needed it anyway."""
        document = cls(path, text, source)
        object.__setattr__(document, "utf8", utf8)
        return document

    def encoded(self) -> bytes:
        """The text in UTF-8."""
        return self.text.encode() if self.utf8 is None else self.utf8

    @property
    def n_bytes(self) -> int:
        """Length in UTF-8 bytes."""
        return len(self.text) if self.text.isascii() else len(self.encoded())

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the text's UTF-8 bytes."""
        return hashlib.sha256(self.encoded()).hexdigest()

    @property
    def domain(self) -> str:
        """What it is a sample of: the first folder of its path, or the file itself."""
        return self.path.partition("/")[0]
