"""From a request's JSON to a ballot: every field of the type and size that it may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fledge.errors import RequestError
from fledge.label.blind import SKIP, TIE, A, B
from fledge.label.desk import Ballot, clean_name
from fledge.serve.body import shown

CHOICES = (A, B, TIE, SKIP)
MAX_REASON_CHARACTERS = 4000
MAX_SECONDS = 86400.0
TOKEN_CHARACTERS = (16, 64)
FIELDS = frozenset({"annotator", "item", "choice", "token", "seconds", "reason", "reasons"})


def read_ballot(tree: dict[str, Any], reasons: Sequence[str]) -> Ballot:
    """Raises RequestError naming the field. `reasons`: those that can be ticked."""
    refuse_unknown(tree, FIELDS)
    choice, seconds = tree.get("choice"), tree.get("seconds", 0.0)
    if choice not in CHOICES:
        raise wrong("choice", f"one of {', '.join(CHOICES)}", choice)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        raise wrong("seconds", "a number from 0", seconds)
    ticked = tree.get("reasons", [])
    if not isinstance(ticked, list) or any(one not in reasons for one in ticked) or len(set(ticked)) < len(ticked):
        raise wrong("reasons", f"a list of {', '.join(reasons) or 'none'}, each once", ticked)
    reason = tree.get("reason", "")
    if not isinstance(reason, str) or len(reason) > MAX_REASON_CHARACTERS:
        raise wrong("reason", f"a text of at most {MAX_REASON_CHARACTERS} characters", reason)
    return Ballot(
        annotator=read_name(tree),
        item=read_number(tree, "item"),
        choice=choice,
        token=read_token(tree),
        seconds=min(float(seconds), MAX_SECONDS),
        reason=reason.replace("\0", "").strip(),  # PostgreSQL's text has no U+0000
        reasons=tuple(ticked),
    )


def read_name(tree: dict[str, Any]) -> str:
    name = tree.get("annotator")
    if not isinstance(name, str):
        raise wrong("annotator", "a name", name)
    return clean_name(name)


def read_number(tree: dict[str, Any], field: str) -> int:
    number = tree.get(field)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number < 1 << 62:
        raise wrong(field, "a number from 1", number)
    return number


def read_token(tree: dict[str, Any]) -> str:
    token, (least, most) = tree.get("token"), TOKEN_CHARACTERS
    if not isinstance(token, str) or not least <= len(token) <= most or not (token.isascii() and token.isalnum()):
        raise wrong("token", f"{least}..{most} letters and digits", token)
    return token


def refuse_unknown(tree: dict[str, Any], known: frozenset[str]) -> None:
    for name in tree:
        if name not in known:
            raise RequestError(f"{name[:40]}: unknown field; expected {', '.join(sorted(known))}", name[:40])


def wrong(field: str, expected: str, got: Any) -> RequestError:
    return RequestError(f"{field}: expected {expected}, got {shown(got)}", field)
