"""runs/compress's figures as a page that loads nothing, and as a table in Markdown."""

from __future__ import annotations

from typing import Any

import fledge
from fledge.train.markup import Child, Html, join, table, tag
from fledge.train.page import page_head
from fledge.train.plot import Chart, Line, figure

HEAD = ("", "parameters", "bytes", "bits a byte", "95 %, 3 seeds", "perplexity", "tokens/CPU s")
SHARED_HEAD = ("", "parameters", "bytes", "nats a masked token", "95 %, 3 seeds")
STYLE = ".scroll { margin-bottom: 1.4rem } .charts + .scroll { margin-top: 1.4rem }"
CURVES = (("Zeros", ("magnitude", "wanda")), ("Parts taken out", ("neurons", "heads", "layers")))


def page(found: dict[str, Any]) -> str:
    """The whole page, from what compress.json holds."""
    title = "Ways to a smaller model"
    charts = [figure(chart(name, methods, found)) for name, methods in CURVES]
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", introduction(found), class_="quiet")),
        tag("section", tag("h2", "Side by side"), table(HEAD, list(map(row, found["table"])), tuple(range(1, 7)))),
        tag("section", tag("h2", "Pruning curves"), tag("p", told(found), class_="quiet"),
            tag("div", join(*charts), class_="charts"), *curve_tables(found)),
        tag("section", tag("h2", "One layer for all"), tag("p", SHARED.format(found["encoder_steps"]), class_="quiet"),
            table(SHARED_HEAD, list(map(shared_row, found["shared"])), (1, 2, 3, 4))),
        tag("footer", tag("p", f"Written by fledge {fledge.__version__}, runs/compress/tables.py.", class_="quiet")),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', page_head(title, STYLE), body, lang='en')}\n"


SHARED = (
    "Encoders of five layers of width 64 from initial weights, masked tokens of the same text, {} steps each: of "
    "weights of their own (bert), and all of one layer's (albert)."
)


def introduction(found: dict[str, Any]) -> str:
    held = found["held_out"]
    return (
        f"stories260K, gone on with on extracts from novels for {found['base_steps']} steps of 1,024 tokens, "
        f"measured on {held['documents']} pieces of them that were held out ({held['bytes']:,} bytes). "
        f"Recovery and distillation: {found['steps']} steps more. Intervals: Student's t over three seeds of "
        "training; where there are none, nothing was drawn. Tokens a second of CPU time: one request, all in turn."
    )


def told(found: dict[str, Any]) -> str:
    return (
        f"Bits a byte by the share that was taken out, without recovery and with {found['steps']} steps of it (seed 1; "
        "zeros stay zeros). The full model after as many steps stands in the table above."
    )


def row(one: dict[str, Any]) -> tuple[Child, ...]:
    speed = f"{one['tokens_per_second']:,.0f}"
    return (one["name"], f"{one['parameters']:,}", f"{one['bytes']:,}", f"{one['bits_per_byte']:.4f}", interval(one, 4),
            f"{one['perplexity']:.2f}", speed)  # fmt: skip


def shared_row(one: dict[str, Any]) -> tuple[Child, ...]:
    return one["name"], f"{one['parameters']:,}", f"{one['bytes']:,}", f"{one['masked_loss']:.3f}", interval(one, 3)


def interval(one: dict[str, Any], digits: int) -> str:
    if one["interval"] is None:
        return "–"
    low, high = one["interval"]
    return f"{low:.{digits}f} to {high:.{digits}f}"


def chart(title: str, methods: tuple[str, ...], found: dict[str, Any]) -> Chart:
    lines = []
    for number, method in enumerate(methods):
        for place, (when, name) in enumerate((("before", f"{method} – no recovery"), ("after", method))):
            points = tuple((100 * p["share"], p[when]["bits_per_byte"]) for p in found["curves"][method] if when in p)
            lines.append(Line(name, points, f"run{2 * number + place}", dots=True))
    return Chart(title, tuple(lines), x_name="% taken out", y_name="bits a byte")


def curve_tables(found: dict[str, Any]) -> list[Html]:
    made = []
    for method, points in found["curves"].items():
        rows = [curve_row(method, point) for point in points]
        made.append(table((method, "parameters", "bits a byte", "perplexity", "recovered", "perplexity"), rows,
                          (1, 2, 3, 4, 5)))  # fmt: skip
    return made


def curve_row(method: str, point: dict[str, Any]) -> tuple[Child, ...]:
    before, after = point["before"], point.get("after")
    cells = (f"{100 * point['share']:.0f} %", f"{before['parameters']:,}", f"{before['bits_per_byte']:.3f}",
             f"{before['perplexity']:,.2f}")  # fmt: skip
    return (*cells, "–", "–") if after is None else (
        *cells, f"{after['bits_per_byte']:.3f}", f"{after['perplexity']:,.2f}"
    )  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """The tables for docs/compress.md."""
    parts = [in_markdown(HEAD, [row(one) for one in found["table"]])]
    for method, points in found["curves"].items():
        head = (method, "parameters", "bits a byte", "perplexity", "recovered", "perplexity")
        parts.append(in_markdown(head, [curve_row(method, point) for point in points]))
    parts.append(in_markdown(SHARED_HEAD, [shared_row(one) for one in found["shared"]]))
    return "\n\n".join(parts) + "\n"


def in_markdown(head: tuple[str, ...], rows: list[tuple[Child, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
