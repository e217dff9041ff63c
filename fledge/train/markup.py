"""HTML and SVG that cannot be broken by what they show: text is escaped unless it was built here. Imports no torch."""

from __future__ import annotations

import html
import re
from typing import TypeAlias

# Characters HTML forbids (controls, surrogates, non-characters): a model can print them, a page can't hold them.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
VOID = {"meta", "br", "line", "polyline", "path", "circle", "rect", "hr", "wbr"}


class Html(str):
    """Markup that is already safe."""


Child: TypeAlias = "str | int | float | Html | None"


def escape(text: object) -> Html:
    """Any text as markup that shows it; forbidden characters become U+FFFD."""
    return Html(html.escape(FORBIDDEN.sub("\ufffd", str(text)), quote=True))


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """`<name attributes>children</name>`; children that are not Html are escaped, None is left out.

    `_` in attribute names is `-`, a trailing `_` (class_) is dropped; an attribute that is None or False is left out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape("" if value is True else value)}"')
    opened = f"<{' '.join(words)}>"
    if name in VOID and not children:
        return Html(opened if name in ("meta", "br", "hr", "wbr") else opened[:-1] + "/>")
    return Html(f"{opened}{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Children one after the other, escaped unless they are Html."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children if c is not None))


def table(head: tuple[str, ...], rows: list[tuple[Child, ...]], numbers: tuple[int, ...] = ()) -> Html:
    """A table; columns whose index is in `numbers` are aligned right. It scrolls by itself where it doesn't fit."""

    def cells(name: str, row: tuple[Child, ...]) -> Html:
        return tag("tr", *(tag(name, c, class_="number" if i in numbers else None) for i, c in enumerate(row)))

    body = tag("tbody", *(cells("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", cells("th", head)), body), class_="scroll")
