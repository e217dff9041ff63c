"""Configuration of `fledge label` and of the verbs on what it stored. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fledge.errors import ConfigError
from fledge.serve.config import check_api_key

MAX_REASONS = 12
MAX_REASON_CHARACTERS = 60


@dataclass(frozen=True)
class LabelConfig:
    """A page where people say which of two answers is better, without knowing whose they are."""

    pairs: Path
    """JSON lines or one JSON array, also .gz and .zst: pairs of answers (prompt, chosen, rejected) in any form that
    `align dpo` reads, or a prompt with `answers`, of which every two are compared."""
    out: str
    """Where the votes go: a SQLite file, made when it isn't there, or `postgresql://…`."""
    annotator: str = ""
    """The name that the page begins with; empty: it asks."""
    reasons: tuple[str, ...] = ("more correct", "more helpful", "clearer", "better tone", "safer")
    """What can be ticked as a reason."""
    seed: int | None = None
    """From which it is drawn which answer stands left, for each item and annotator; none: drawn once, then kept in
    `out`."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback is reachable from other machines: set an API key."""
    port: int = 8010
    """Port to listen on; 0 lets the system choose one."""
    api_key: str = ""
    """A key without which nobody can vote; it stands in the address that is printed. The environment's FLEDGE_API_KEY
    when empty."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names for the Host header. On loopback only localhost is answered, so that no web page can reach in."""
    access_log: Literal["json", "plain", "off"] = "off"
    """One line per request on standard error."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: expected 0..65535, got {self.port}")
        if not self.out:
            raise ConfigError("out: expected a file or postgresql://…, got an empty text; set out=labels.db")
        if len(self.reasons) > MAX_REASONS or len(set(self.reasons)) < len(self.reasons):
            raise ConfigError(f"reasons: expected at most {MAX_REASONS}, each once, got {len(self.reasons)}")
        for reason in self.reasons:
            if not 1 <= len(reason) <= MAX_REASON_CHARACTERS or not reason.isprintable():
                raise ConfigError(f"reasons: expected 1..{MAX_REASON_CHARACTERS} characters, got {reason!r:.80}")
        check_api_key(self.api_key, "api_key")


@dataclass(frozen=True)
class LabelExportConfig:
    """Votes as preferences, for `align dpo` and `align reward`."""

    labels: str
    """What `fledge label` wrote: a SQLite file or `postgresql://…`."""
    out: Path
    """The file to write: JSON lines of prompt, chosen, rejected and how many said so."""
    rule: Literal["majority", "unanimous"] = "majority"
    """majority: an answer is chosen that more than half of those who judged its pair prefer; unanimous: one that all
    of them prefer. A tie is a judgement for neither, a skip is none."""
    min_votes: int = 1
    """Pairs that fewer people judged are left out."""

    def __post_init__(self) -> None:
        if self.min_votes < 1:
            raise ConfigError(f"min_votes: expected at least 1, got {self.min_votes}")


@dataclass(frozen=True)
class LabelReportConfig:
    """How far the labelling is, and how far the annotators agree."""

    labels: str
    """What `fledge label` wrote: a SQLite file or `postgresql://…`."""
