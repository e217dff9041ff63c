"""Run log (JSON lines, the truth about a run) and progress (a bar for people, plain lines elsewhere).

Imports no torch. Standard output belongs to results; everything here goes to standard error or to a file.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, TextIO


def silent() -> bool:
    """Whether this process is one of many (torchrun's RANK and WORLD_SIZE) and another speaks for them."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and os.environ.get("RANK", "0") not in ("", "0")


def visible(text: str) -> str:
    """`text` with what steers a terminal (escapes, carriage returns, marks that turn the direction) spelled out: names
    and texts may be somebody else's."""
    return "".join(
        c if c.isprintable() or c in "\n\t" or (c >= "\xa0" and c.isspace()) else ascii(c)[1:-1] for c in text
    )


def say(text: str, rank: int = 0) -> None:
    """One line for people, on standard error, from rank 0 only."""
    if rank == 0 and not silent():
        print(visible(text), file=sys.stderr, flush=True)


def warn(text: str, rank: int = 0) -> None:
    say(f"warning: {text}", rank)


class RunLog:
    """Append-only JSON lines at `path`: one event an object, with its `kind` and `time` (Unix seconds).

    A torn last line (a crash in mid write) is cut off when the log is opened again. Ranks above 0 write nothing.
    `waits`: lines that the disk refuses are kept for the next write, with a warning, where else OSError is raised.
    """

    def __init__(self, path: str | Path, rank: int = 0, waits: bool = False):
        self.path = Path(path)
        self.rank, self.waits = rank, waits
        self._file: FileIO | None = None
        self._waiting = deque[bytes]()
        self._warned = False
        if rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            drop_torn_line(self.path)
            self._file = FileIO(self.path, "a")

    def write(self, kind: str, **values: Any) -> None:
        """Append one event. Non-finite numbers are written as strings, so that every line is strict JSON."""
        if self._file is None:
            return
        event = {"kind": kind, "time": round(time.time(), 3), **values}
        self._waiting.append(json.dumps(json_safe(event), allow_nan=False).encode() + b"\n")
        self._append(self._file)

    def _append(self, file: FileIO) -> None:
        """Every line that waits, as far as the disk takes them."""
        try:
            while self._waiting:
                append_whole(file, self._waiting[0])
                self._waiting.popleft()
            self._warned = False
        except OSError as error:
            if not self.waits:
                self._waiting.clear()
                raise
            if not self._warned:
                warn(f"{self.path}: can't be written ({error.strerror}); its lines wait in memory until it can")
            self._warned = True

    def truncate_after(self, step: int, drawn: int) -> None:
        """Drop what a run that goes on from `step`, with batch `drawn` the next, writes again: events of later steps,
        those of batches from `drawn` on, and the end."""
        if self._file is None:
            return
        self._file.close()
        kept = [event for event in read_log(self.path) if is_past(event, step, drawn)]
        scratch = self.path.with_suffix(".tmp")
        with open(scratch, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self.path)
        self._file = FileIO(self.path, "a")

    def close(self) -> None:
        if self._file is not None:
            self._append(self._file)
            if self._waiting:
                warn(f"{self.path}: {len(self._waiting)} lines were lost, as it can't be written")
            self._file.close()
            self._file = None


def append_whole(file: FileIO, line: bytes) -> None:
    """All of it, or, where the system refuses some (OSError), nothing."""
    begins, rest = file.seek(0, os.SEEK_END), memoryview(line)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with suppress(OSError):
            file.truncate(begins)
        raise


def is_past(event: Any, step: int, drawn: int) -> bool:
    """Whether a logged event stands before the point where a run goes on."""
    if not isinstance(event, dict) or event.get("kind") in ("end", "early_stop"):
        return False
    if event.get("kind") in ("non_finite", "overflow", "spike", "rollout", "alarm"):
        return bool(event.get("batch", 0) < drawn)
    return event.get("step") is None or bool(event["step"] <= step)


def drop_torn_line(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Every whole event of a run log, oldest first."""
    events = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue  # a line torn by a crash; RunLog cuts it off when the run goes on
    return events


def json_safe(value: Any) -> Any:
    """`value` with non-finite floats as 'nan', 'inf' or '-inf' text, and Paths as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(v) for v in value]
    return str(value) if isinstance(value, Path) else value


class Progress:
    """Progress of one long job: a live bar on a terminal, else one plain line every `every_seconds`.

    `update(done, **figures)` takes the number of units done and figures to show (already rounded text or numbers).
    The time left comes from the pace of this process (a resumed run does not count the steps of its past life).
    """

    def __init__(
        self, what: str, total: int, start: int = 0, every_seconds: float = 10.0, stream: TextIO | None = None
    ):
        self.what, self.total, self.start = what, total, start
        self.stream = stream or sys.stderr
        self.silent = silent()
        self.live = self.stream.isatty() and not self.silent
        self.every_seconds = 0.1 if self.live else every_seconds
        self.began = time.monotonic()
        self.last_shown = 0.0 if self.live else self.began

    def update(self, done: int, **figures: Any) -> None:
        now = time.monotonic()
        if self.silent or now - self.last_shown < self.every_seconds and done < self.total:
            return
        self.last_shown = now
        fresh = done - self.start
        left = (now - self.began) / fresh * (self.total - done) if fresh > 0 else math.nan
        parts = [f"{self.what} {done}/{self.total}", *(f"{k} {v}" for k, v in figures.items()), f"ETA {clock(left)}"]
        if self.live:
            width = 24
            filled = round(width * done / max(1, self.total))
            bar = "━" * filled + "─" * (width - filled)
            self.stream.write("\r\x1b[2K" + fit(f"{bar} " + " · ".join(parts)))
        else:
            self.stream.write(" · ".join(parts) + "\n")
        self.stream.flush()

    def note(self, text: str) -> None:
        """A line above the bar (a sample, an evaluation)."""
        if self.silent:
            return
        self.stream.write(("\r\x1b[2K" if self.live else "") + visible(text.rstrip("\n")) + "\n")
        self.stream.flush()

    def close(self) -> None:
        if self.live:
            self.stream.write("\n")
            self.stream.flush()


def fit(line: str) -> str:
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 120
    return line[: max(20, columns - 1)]


def clock(seconds: float) -> str:
    """`75 s` as `1:15`; not a number as `-:--`."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
