"""The result of `fledge tokenizer report` as one self-contained HTML page: it loads nothing and runs nothing.

What comes from texts, tokenizers and the command line is escaped wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

MARK = "__BODY__"
Row = dict[str, Any]


def page(result: dict[str, Any]) -> str:
    """The whole page as text, from what `report_tokenizers` gives."""
    before, _, after = files("fledge.text").joinpath("report.html").read_text(encoding="utf-8").partition(MARK)
    rows, names = result["tokenizers"], short_names([row["name"] for row in result["tokenizers"]])
    amount = f"{result['documents']:,} documents, {result['bytes']:,} bytes, {result['words']:,} words"
    parts = [
        f"<h1>Tokenizers compared</h1><p class=quiet>{escape(result['text'])}: {amount}</p>",
        overview(result, names),
        domains(
            rows, names, "bytes_per_token", "Bytes per token",
            "More is better: fewer tokens for the same text. All bars have one scale; the best of a line is marked.",
            best=max, one_scale=True,
        ),
        domains(
            rows, names, "tokens_per_word", "Tokens per word",
            "Fertility: less is better. It says little of languages that write no spaces, so each line has a scale of "
            "its own.", best=min, one_scale=False,
        ),
        words(rows, names),
        unused(rows, names),
    ]  # fmt: skip
    return before + "\n".join(part for part in parts if part) + after


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each path, for a file with its folder; the whole path where several end alike."""
    last = ["/".join(Path(name).parts[-2 if Path(name).suffix else -1 :]) or name for name in names]
    return [short if last.count(short) == 1 else name for short, name in zip(last, names, strict=True)]


def overview(result: dict[str, Any], names: Sequence[str]) -> str:
    head = ("Tokenizer", "Kind", "Ids", "Bytes/token", "Chars/token", "Tokens/word", "Single-token words",
            "Unused", "Lossless")  # fmt: skip
    lines = [
        (
            f"<span title='{escape(row['name'])}'>{breakable(name)}</span>", escape(row["kind"]),
            f"{row['vocab_size']:,}",
            f"{row['bytes_per_token']:.3f}", f"{row['characters_per_token']:.3f}", f"{row['tokens_per_word']:.3f}",
            f"{100 * row['single_token_words']:.1f} %", f"{row['unused']:,}", "yes" if row["lossless"] else "no",
        )
        for name, row in zip(names, result["tokenizers"], strict=True)
    ]  # fmt: skip
    lines.append(("<span class=quiet>one token per character</span>", "", "", f"{result['bytes_per_character']:.3f}",
                  "1.000", "", "", "", ""))  # fmt: skip
    body = "".join("<tr>" + "".join(f"<td>{cell}" for cell in line) for line in lines)
    return f"<div class=scroll><table class=overview>{heading(head)}{body}</table></div>"


def domains(
    rows: Sequence[Row],
    names: Sequence[str],
    key: str,
    title: str,
    note: str,
    best: Callable[[Iterable[float]], float],
    one_scale: bool,
) -> str:
    """A line for each domain with a bar for each tokenizer, in columns of one width."""
    highest = max((row["domains"][name][key] for row in rows for name in row["domains"]), default=0.0)
    body = ""
    for domain, first in rows[0]["domains"].items():
        values = [row["domains"][domain][key] for row in rows]
        wanted, longest = best(values), (highest if one_scale else max(values)) or 1
        body += f"<tr><th scope=row>{escape(domain)}<td>{first['bytes']:,}"
        for value in values:
            marked = " class=best" if value == wanted and len(rows) > 1 else ""
            body += f"<td class=bar><i style='--share:{value / longest:.3f}'></i><span{marked}>{value:.3f}</span>"
    head = heading(("Domain", "Bytes", *map(breakable, names)))
    table = f"<table class=bars style='min-width:{12 + 6 * len(rows)}rem'>{head}{body}</table>"
    return f"<h2>{title}</h2><p class=quiet>{note}</p><div class=scroll>{table}</div>"


def words(rows: Sequence[Row], names: Sequence[str]) -> str:
    """How each word asked for is split."""
    found = ""
    for word in rows[0]["words"]:
        found += f"<h2>\u201c{escape(word)}\u201d</h2><dl>"
        for name, row in zip(names, rows, strict=True):
            pieces = row["words"][word]
            found += f"<dt>{escape(name)}, {len(pieces)}<dd>{chips(pieces)}"
        found += "</dl>"
    return found


def unused(rows: Sequence[Row], names: Sequence[str]) -> str:
    shown = [(name, row) for name, row in zip(names, rows, strict=True) if row["unused"]]
    if not shown:
        return ""
    lines = [
        f"<dt>{escape(name)}, {100 * row['unused'] / row['vocab_size']:.1f} %<dd>{chips(row['unused_examples'])}"
        for name, row in shown
    ]
    note = "<p class=quiet>Entries that no text used, some of the last ones: rows that would not be trained.</p>"
    return f"<h2>Unused vocabulary</h2>{note}<dl>{''.join(lines)}</dl>"


def chips(tokens: Sequence[str]) -> str:
    """Each token in a box, its spaces and line ends to be seen."""
    seen = [token.replace(" ", "\u2423").replace("\n", "\u21b5").replace("\t", "\u21e5") for token in tokens]
    return "".join(f"<span class=chip>{escape(token)}</span>" for token in seen)


def breakable(name: str) -> str:
    """A name that may go on in a new line after its marks."""
    return re.sub(r"([/._-])", r"\1<wbr>", escape(name))


def heading(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<th scope=col>{cell}" for cell in cells)
