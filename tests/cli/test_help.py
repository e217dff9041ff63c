"""Help shows everything a verb takes, with type, default and meaning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fledge.cli.help import overview, show_default, verb_help
from fledge.cli.page import section
from fledge.cli.verbs import VERBS, Verb


@dataclass(frozen=True)
class Inner:
    rate: float = 3e-4
    """How fast."""


@dataclass(frozen=True)
class Example:
    model: Path
    """What to load."""
    words: tuple[str, ...] = ()
    """What | to say."""
    system: str | None = None
    """Who to be."""
    inner: Inner = Inner()


VERB = Verb("example", "an example", "-:-", "-:-", ("model", "[words]"), aliases=(("rate", "inner.rate"),))


def test_every_verb_stands_in_the_overview():
    text = overview()
    assert [verb.name for verb in VERBS if f"\n  {verb.name} " not in text] == []


def test_every_key_is_shown_with_type_default_and_meaning():
    text = verb_help(VERB, Example)
    assert "usage: fledge example MODEL [WORDS] [FILE.yaml] [key=value | --key value ...] [--json]" in text
    assert "--rate         same as --inner.rate" in text
    for line in ("model  path (required)", "words  list of text (default [])", "system  text or none (default none)"):
        assert f"\n  {line}\n" in text
    assert "inner.rate  number (default 0.0003)\n      How fast." in text


def test_a_verb_without_a_file_does_not_offer_one():
    verb = Verb("example", "an example", "-:-", "-:-", yaml=False)
    assert "YAML" not in verb_help(verb, Example) and ".yaml" not in verb_help(verb, Example)


def test_a_table_cell_cannot_break_its_table(monkeypatch):
    monkeypatch.setattr("fledge.cli.page.named", lambda path: Example)
    assert "| `words` | list of text | [] | What \\| to say. |" in section(VERB)


def test_defaults_are_shown_as_one_would_type_them():
    shown = [show_default(value) for value in (None, "", "x", True, 0.1, (), ("a",), Path("out"), {"a": 1})]
    assert shown == ["none", '""', "x", "true", "0.1", "[]", '["a"]', "out", '{"a": 1}']
