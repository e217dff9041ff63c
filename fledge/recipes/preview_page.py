"""`data preview` as one self-contained page. Imports no torch."""

from __future__ import annotations

from typing import Any

from fledge.recipes.preview_text import columns_of, footer, told
from fledge.train.markup import Html, join, tag
from fledge.train.page import page_head

STYLE = """
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font: .9rem/1.9 ui-monospace, monospace; }
.tokens span { border-left: 1px solid var(--rule); padding: .1rem 0; color: var(--quiet); }
.tokens .trained { color: var(--ink); background: color-mix(in srgb, var(--good) 25%, transparent); }
.tokens small { color: var(--good); }
"""


def page(result: dict[str, Any]) -> str:
    """Every token of the rows, trained ones on green; its id and weight show under the pointer."""
    title = f"What fledge {result['verb']} trains on"
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", f"{result['path']}, split {result['split']}", class_="quiet")),
        tag("p", tag("span", "trained", class_="trained"), " tokens count in the loss, the others are only read.",
            class_="tokens"),
        *(tag("p", line) for line in footer(result)),
        *(row(one) for one in result["rows"]),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', page_head(title, STYLE), body, lang='en')}\n"


def row(one: dict[str, Any]) -> Html:
    answer = tag("p", f"answer: {one['answer']}") if "answer" in one else None
    parts = [part(name, found) for name, found in one["parts"].items()]
    return tag("section", tag("h2", f"Row {one['row']}, from {one['from']}"), answer, *parts)


def part(name: str, found: dict[str, Any]) -> Html:
    documents = [
        join(tag("p", f"document {one['document']}, {told(one)}", class_="quiet"), tokens(one))
        for one in found["documents"]
    ]
    padding = tag("p", f"{found['padding']} places of padding", class_="quiet") if found["padding"] else None
    return join(tag("h3", name) if name else None, *documents, padding)


def tokens(document: dict[str, Any]) -> Html:
    spans = []
    for number, piece, weight, target in columns_of(document, len(document["ids"])):
        aim = tag("small", f"→{target}") if target is not None else None
        mark = "trained" if weight > 0 else None
        spans.append(tag("span", piece.replace("\n", "⏎\n"), aim, class_=mark, title=f"id {number}, weight {weight:g}"))
    return tag("div", *spans, class_="tokens")
