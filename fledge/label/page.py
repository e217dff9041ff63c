"""The files of the labelling page, under the chat page's policy: nothing runs or loads but them. Its style sheet and
icon are the chat page's, with what labelling needs beside."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.responses import Response

from fledge.serve.page import HEADERS, MEDIA_TYPES, page_file

PAGE_NAMES = ("label.html", "label.css", "label.js", "desk.js", "memory.js", "progress.js", "show.js")
SHARED_NAMES = ("chat.css", "icon.svg")


def label_file(name: str) -> Response:
    """One of the page's files. Raises ApiError 404 for any other name."""
    if name in PAGE_NAMES:
        return Response(read(name), headers=HEADERS, media_type=MEDIA_TYPES[name.rpartition(".")[2]])
    return page_file(name if name in SHARED_NAMES else "")


@cache
def read(name: str) -> bytes:
    return files("fledge.label").joinpath("pages", name).read_bytes()
