"""`ChunkFrames`: a stream's chunks as bytes. What they share is written once a reply; each time, a piece of text."""

from __future__ import annotations

from typing import Any

from fledge.serve.stream import frame, to_json


class ChunkFrames:
    """Frames of chunks with one choice each. `chunk`: such a chunk whose `choices` are empty."""

    def __init__(self, chunk: dict[str, Any]):
        self.before, self.after = parted(frame(chunk), b'"choices":[')

    def of(self, choice: dict[str, Any]) -> bytes:
        return self.before + to_json(choice).encode("utf-8") + self.after

    def texts(self, choice: dict[str, Any]) -> TextFrames:
        """The frames of `choice` with texts in the place of its empty one."""
        before, after = parted(to_json(choice).encode("utf-8"), b'"', b'"')
        return TextFrames(self.before + before[:-1], after[1:] + self.after)


class TextFrames:
    """Frames that differ in one text."""

    def __init__(self, before: bytes, after: bytes):
        self.before, self.after = before, after

    def of(self, text: str) -> bytes:
        return self.before + to_json(text).encode("utf-8") + self.after


def parted(data: bytes, left: bytes, right: bytes = b"") -> tuple[bytes, bytes]:
    """`data` cut between the first `left` and `right` that stand side by side. Inside a JSON text neither can: quotes
    are escaped there."""
    place = data.index(left + right) + len(left)
    return data[:place], data[place:]
