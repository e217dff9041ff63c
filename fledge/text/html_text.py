"""What a reader sees of an HTML page, as plain text: no markup, scripts, menus or hidden parts.

A tag is read as browsers read it (WHATWG HTML, 13.2.5), in one pass whose time is linear whatever the page holds. Left
out are parts that say of themselves that they are not the text (nav, aside, footer, `hidden`, roles, the usual class
names), and runs of short blocks that are nothing but links: menus that don't say so.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

TAG = re.compile(r"""<(/?)([a-zA-Z][^\s/>]*+)((?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+')?+)*+)>""")
ATTRIBUTE = re.compile(r"""([^\s"'>/=]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'=<>`]+)))?""")
INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


RAW = words("script style textarea title xmp iframe noembed noframes")  # no tags inside
VOID = words("area base br col embed hr img input link meta param source track wbr")
LEFT_OUT = words(
    "head noscript template nav footer aside button select datalist svg math canvas object audio video map menu dialog"
)
LEFT_OUT_ROLES = words("navigation banner contentinfo search complementary menu menubar dialog alertdialog")
LEFT_OUT_NAMES = words(
    "nav navbar navigation menu sidebar breadcrumb breadcrumbs footer cookie cookies cookie-banner cookie-consent "
    "share sharing social related advert advertisement ads popup newsletter pagination noprint skip-link"
)
NAMED_ELEMENTS = words("div ul ol section p span table tr td li a")  # whose class or id may leave them out
PARAGRAPHS = words(
    "address article blockquote body caption center dd div dl dt fieldset figcaption figure form h1 h2 h3 h4 h5 h6 "
    "header hgroup hr html main ol p pre section table tbody tfoot thead title ul nav footer aside menu dialog"
)
LINES = words("br li tr option summary details")
CELLS = words("td th")
# An element that ends where one of the same group begins, without being closed.
IMPLIED = {
    **{name: group for group in map(words, ("li", "dt dd", "tr", "td th", "option")) for name in group},
    **{name: words("p") for name in PARAGRAPHS - words("dt dd")},
}
MENU_BLOCKS, MENU_CHARACTERS, MENU_LINKED = 3, 60, 0.8


class Block(NamedTuple):
    """One paragraph or line; `linked` of its characters stand in links; `gap` stands before it."""

    text: str
    linked: int
    gap: str

    @property
    def is_menu(self) -> bool:
        return len(self.text) <= MENU_CHARACTERS and self.linked >= MENU_LINKED * len(self.text)


class Tag(NamedTuple):
    name: str
    attributes: str
    closes: bool


def html_text(page: str) -> str:
    """The visible text of a page: an empty line between paragraphs, lists and tables line by line."""
    reader = Reader()
    for part in parts(page.replace("\0", "")):
        if isinstance(part, str):
            reader.text(part)
        elif part.closes:
            reader.close(part.name)
        else:
            reader.open(part)
    reader.end_block("\n\n")
    kept = without_menus(reader.blocks)
    return "".join(f"{block.gap if n else ''}{block.text}" for n, block in enumerate(kept))


def parts(page: str) -> Iterator[str | Tag]:
    """Text and tags in their order; comments and what stands in RAW elements are left out."""
    at, xml = 0, page.startswith("<?xml")
    while True:
        place = page.find("<", at)
        yield page[at : place if place >= 0 else len(page)]
        if place < 0:
            return
        at, tag = after_markup(page, place)
        if at < 0:
            return  # unfinished: browsers show nothing of it
        if tag is None:
            if at == place + 1:
                yield "<"
            continue
        yield tag
        if xml and tag.attributes.endswith("/"):
            yield Tag(tag.name, "", True)
        elif tag.name in RAW and not tag.closes:
            end = re.compile(f"</{tag.name}(?=[\\s/>])", re.IGNORECASE).search(page, at)
            if end is None:
                return
            at = end.start()


def after_markup(page: str, place: int) -> tuple[int, Tag | None]:
    """Where what begins with the `<` at `place` ends (-1: nowhere), and the tag, if it is one."""
    following = page[place + 1 : place + 3]
    if following[:1].isalpha() and following[:1].isascii() or following[:1] == "/" and following[1:].isalpha():
        match = TAG.match(page, place)
        if match is None:
            return -1, None
        return match.end(), Tag(match[2].lower(), match[3], match[1] == "/")
    if following[:1] not in ("!", "?", "/"):
        return place + 1, None
    comment = page.startswith("<!--", place)
    end = page.find("-->" if comment else ">", place + (4 if comment else 2))
    return (-1 if end < 0 else end + (3 if comment else 1)), None


class Reader:
    """Walks through a page with a stack of open elements and gathers blocks of visible text."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.stack: list[tuple[str, bool]] = []  # (name, whether it is left out)
        self.open_names: Counter[str] = Counter()
        self.hidden = 0  # elements on the stack that are left out
        self.pieces: list[str] = []
        self.linked = 0
        self.gap = ""  # before the block that is being gathered

    def text(self, raw: str) -> None:
        if self.hidden or not raw:
            return
        text = html.unescape(raw) if "&" in raw else raw
        self.pieces.append(text)
        if self.open_names["a"]:
            self.linked += len(" ".join(text.split()))

    def open(self, tag: Tag) -> None:
        name = tag.name
        self.close_implied(name)
        self.break_at(name)
        if name in VOID:
            return
        left_out = name in LEFT_OUT or name in RAW or is_left_out(name, tag.attributes)
        self.stack.append((name, left_out))
        self.open_names[name] += 1
        self.hidden += left_out

    def close(self, name: str) -> None:
        self.break_at(name)
        if self.open_names[name]:
            while self.pop() != name:
                pass

    def close_implied(self, name: str) -> None:
        if self.stack and self.stack[-1][0] in IMPLIED.get(name, ()):
            self.pop()

    def pop(self) -> str:
        name, left_out = self.stack.pop()
        self.open_names[name] -= 1
        self.hidden -= left_out
        return name

    def break_at(self, name: str) -> None:
        if self.hidden:
            return
        if name in PARAGRAPHS:
            self.end_block("\n\n")
        elif name in LINES:
            self.end_block("\n")
        elif name in CELLS:
            self.pieces.append("\t")

    def end_block(self, gap: str) -> None:
        """End the block, with `gap` before the next; of gaps that meet the larger counts."""
        raw = "".join(self.pieces)
        text = raw.strip("\n").rstrip() if self.open_names["pre"] else squeezed(raw)
        if text.strip():
            self.blocks.append(Block(text, self.linked, self.gap))
            self.gap = ""
        self.gap = max(self.gap, gap, key=len)
        self.pieces, self.linked = [], 0


def squeezed(text: str) -> str:
    """Runs of space as one space, or as a tab where a table's cell ends."""
    cells = (" ".join(cell.split()) for cell in text.split("\t")) if "\t" in text else (" ".join(text.split()),)
    return "\t".join(cell for cell in cells if cell)


def is_left_out(name: str, attributes: str) -> bool:
    """Whether an element says of itself that it is hidden or not part of the text."""
    if not attributes or name in ("html", "body", "main", "article"):
        return False
    found: dict[str, str] = {}
    for key, double, single, bare in ATTRIBUTE.findall(attributes):
        found.setdefault(key.lower(), double or single or bare)
    if "hidden" in found and found["hidden"] != "until-found" or found.get("aria-hidden") == "true":
        return True
    if found.get("role", "").lower() in LEFT_OUT_ROLES or INVISIBLE.search(found.get("style", "")):
        return True
    names = f"{found.get('class', '')} {found.get('id', '')}".lower().split()
    return name in NAMED_ELEMENTS and not LEFT_OUT_NAMES.isdisjoint(names)


def without_menus(blocks: list[Block]) -> Iterator[Block]:
    """The blocks without runs of MENU_BLOCKS or more that are short and all link."""
    run: list[Block] = []
    for block in blocks:
        if block.is_menu:
            run.append(block)
            continue
        if len(run) < MENU_BLOCKS:
            yield from run
        run = []
        yield block
    if len(run) < MENU_BLOCKS:
        yield from run
