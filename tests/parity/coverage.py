"""Which parity test shows what of which family, collected from the tests themselves; docs/families.md is made of it.

A test says with `@pytest.mark.shows("logits", "padded")` what it shows of the family whose case is its parameter.
`python -m tests.parity.coverage > docs/families.md` writes the page.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from pathlib import Path

import pytest

from fledge.model.families import FAMILIES
from fledge.model.families.family import Family
from tests.parity import cases

FOLDER = Path(__file__).resolve().parent


def encodes_only(own: Family) -> bool:
    return own.new_config(next(iter(own.presets.values()))).decoder is None


COLUMNS = {
    "load": "a folder that transformers wrote is read",
    "save": "a folder of ours opens in transformers, no tensor missing or left over, with the same logits",
    "shards": "the same with several files and an index, both ways",
    "spelling": "the config.json of transformers 4 and that of 5 are the same model",
    "logits": "every logit within 1e-5 · max(1, max|logit|) of transformers in float32, every parameter random",
    "padded": "the same for rows of unequal lengths",
    "gradients": "gradients of one step",
    "cache": "decoding in chunks and token by token, rows at different places, gives the logits of one pass",
    "control": "a knob of config.json that is changed changes the logits",
}
WHOLE = {"cache": "an encoder computes whole documents"}
NO_FOLDER = "no folder format exists, its weights were never published: it is counted, built and trained"
OWN = "fledge's own format for models that no published format can express; tests/exact/test_variants.py covers it"
NOT_APPLICABLE: dict[str, dict[str, str]] = {
    "palm": dict.fromkeys(COLUMNS, NO_FOLDER),
    "fledge": dict.fromkeys(COLUMNS, OWN),
    **{name: WHOLE for name, own in FAMILIES.items() if own.presets and encodes_only(own)},
}
INTRODUCTION = """\
# Families, and what is tested of each

*Written by `make docs` from the tests themselves; a test keeps it current.*

A number says how many tests show it: each compares with transformers on a tiny model whose parameters are all random.
Some of them run in `make test-all` only.
"""


class Collected:
    """A pytest plugin that keeps the tests that were found."""

    items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def collected() -> list[pytest.Item]:
    """Every parity test, its parameters filled in; none is run."""
    plugin = Collected()
    words = ["--collect-only", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", str(FOLDER)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main(words, plugins=[plugin])
    assert code == 0, said.getvalue()
    return plugin.items


def counted(items: list[pytest.Item]) -> Counter[tuple[str, str]]:
    """(family, column) -> how many tests show it."""
    families, found = cases.families(), Counter[tuple[str, str]]()
    for item in items:
        columns = {column for mark in item.iter_markers("shows") for column in mark.args}
        if not columns:
            continue
        values = item.callspec.params.values()  # type: ignore[attr-defined]
        names = [families[value] for value in values if isinstance(value, str) and value in families]
        assert names and columns <= set(COLUMNS), f"{item.nodeid}: expected a case and known columns, got {columns}"
        found.update((names[0], column) for column in columns)
    return found


def gaps(found: Counter[tuple[str, str]], families: list[str]) -> list[str]:
    """Cells without a test and without a reason, and reasons for cells that are tested."""
    wrong = []
    for name in families:
        for column in COLUMNS:
            excused = column in NOT_APPLICABLE.get(name, {})
            if bool(found[name, column]) == excused:
                wrong.append(f"{name}: {column}: {'tested, but said not to apply' if excused else 'no test shows it'}")
    return wrong


def page(found: Counter[tuple[str, str]]) -> str:
    """The whole of docs/families.md."""
    reasons: dict[str, int] = {}
    rows = [f"| family | {' | '.join(COLUMNS)} | presets |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, family in FAMILIES.items():
        cells = []
        for column in COLUMNS:
            reason = NOT_APPLICABLE.get(name, {}).get(column, "")
            cells.append(f"— ({reasons.setdefault(reason, len(reasons) + 1)})" if reason else str(found[name, column]))
        rows.append(f"| {name} | {' | '.join(cells)} | {', '.join(family.presets) or '—'} |")
    said = "\n".join(f"- **{column}**: {meaning}." for column, meaning in COLUMNS.items())
    why = "\n".join(f"{n}. {reason[0].upper()}{reason[1:]}." for reason, n in reasons.items())
    return "\n".join([INTRODUCTION, said, "", *rows, "", "Why not:", "", why, ""])


if __name__ == "__main__":
    print(page(counted(collected())), end="")
