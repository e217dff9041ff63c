"""`data preview` in a terminal. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TextIO


@dataclass(frozen=True)
class Marks:
    """What stands before and after tokens that are trained, and before and after those that are only read."""

    trained: tuple[str, str]
    read: tuple[str, str]


COLOURED = Marks(("\x1b[1;32m", "\x1b[0m"), ("\x1b[2m", "\x1b[0m"))
PLAIN = Marks(("«", "»"), ("", ""))
BETWEEN = "│"  # two tokens


def colours(stream: TextIO) -> Marks:
    """Colours on a terminal, unless NO_COLOR is set; else brackets around what is trained."""
    return COLOURED if stream.isatty() and not os.environ.get("NO_COLOR") else PLAIN


def text(result: dict[str, Any], ids: bool, most: int, marks: Marks) -> str:
    """Rows, counts and rules for people; of each row at most so many tokens."""
    lines = [head(result, marks)]
    for row in result["rows"]:
        answer = f", answer {row['answer']}" if "answer" in row else ""
        lines += ["", f"row {row['row']}, from {row['from']}{answer}"]
        left = most
        for name, part in row["parts"].items():
            lines += [f" {name}:"] if name else []
            for document in part["documents"]:
                lines.append(f" -- document {document['document']}, {told(document)}")
                lines.append(tokens(document, ids, left, marks))
                left = max(0, left - len(document["ids"]))
            if part["padding"]:
                lines.append(f" -- {part['padding']} places of padding")
    return "\n".join([*lines, "", *footer(result)])


def head(result: dict[str, Any], marks: Marks) -> str:
    example = "".join(
        f"{before}{word}{after}" for word, (before, after) in (("trained", marks.trained), (" read", marks.read))
    )
    return f"{result['path']}: fledge {result['verb']}, split {result['split']}; {example}; {BETWEEN} parts tokens"


def told(document: dict[str, Any]) -> str:
    n = sum(weight > 0 for weight in document["weights"])
    return f"{len(document['ids'])} tokens, {n} trained"


def tokens(document: dict[str, Any], ids: bool, most: int, marks: Marks) -> str:
    """A document's tokens, runs of trained ones marked; in front of what is hidden what it is to be."""
    n = min(most, len(document["ids"]))
    shown = list(columns_of(document, n))
    written = []
    for trained, run in groupby(shown, key=lambda one: one[2] > 0):
        before, after = marks.trained if trained else marks.read
        body = BETWEEN.join(spelled(piece, number if ids else None, target) for number, piece, _, target in run)
        written.append(f"{before}{body}{after}")
    more = len(document["ids"]) - n
    return BETWEEN.join(written) + (f" … {more} more" if more else "")


def columns_of(document: dict[str, Any], n: int) -> Iterator[tuple[int, str, float, str | None]]:
    targets: Sequence[str | None] = document.get("targets") or [None] * n
    return zip(document["ids"][:n], document["pieces"][:n], document["weights"][:n], targets[:n], strict=True)


def spelled(piece: str, number: int | None, target: str | None) -> str:
    """A token on a terminal: nothing in it can move the cursor; a line's end is seen and made."""
    shown = visible(piece) + (f"→{visible(target)}" if target is not None else "")
    return shown if number is None else f"{shown}({number})"


def visible(piece: str) -> str:
    return "".join(c if c.isprintable() else "⏎\n" if c == "\n" else repr(c)[1:-1] for c in piece)


def footer(result: dict[str, Any]) -> list[str]:
    n = result["counts"]
    epoch = result["rows_per_epoch"]
    rows = f"{n['rows']:,} rows" + (f" of {epoch:,} an epoch" if epoch else "")
    source = f" beside {n['source_tokens']:,} of sources" if n["source_tokens"] else ""
    lines = [f"{rows}: {n['documents']:,} documents, {n['tokens']:,} tokens{source}, {n['padding']:,} of padding"]
    if result["trained"] == "the answer of a row":
        lines.append("trained: the answer of each row; tokens are only read")
    else:
        lines.append(f"trained: {n['trained']:,} {result['trained']}, {n['trained_share']:.1%} of the tokens")
    return lines + [f"{rule['n']:,} {rule['rule']}" for rule in result["rules"]]
