"""The text of `fledge --help` and `fledge VERB --help`, from the table of verbs and the config classes. No torch."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge import config
from fledge.cli.verbs import VERBS, Verb

PROMISE = "fledge raises a language model: raw text in, a served chat model out."
FLAGS = (
    ("--json", "the last line of standard output is the result as one JSON object"),
    ("--help", "this text"),
)


def overview(verbs: Sequence[Verb] = VERBS) -> str:
    """What fledge is and every verb, or those of a group, with their summaries."""
    longest = max(len(verb.name) for verb in verbs)
    lines = [PROMISE, "", "usage: fledge VERB [words] [FILE.yaml] [key=value | --key value ...] [--json] [--help]", ""]
    for verb in verbs:
        lines += wrap(verb.summary, 100, f"  {verb.name:<{longest}}  ", " " * (longest + 4))
    lines += [
        "",
        "  fledge VERB --help    every key of a verb with its type, default and meaning",
        "  fledge --version      the version",
        "",
        "Exit codes: 0 done, 1 failed, 2 wrong use, 75 stopped with its state saved (the same command continues).",
    ]
    return "\n".join(lines)


def usage(verb: Verb) -> str:
    """The one-line form of a verb."""
    words = [name.upper() for name in verb.positionals]
    words += ["[FILE.yaml]"] if verb.yaml else []
    return " ".join(["fledge", verb.name, *words, "[key=value | --key value ...] [--json]"])


def verb_help(verb: Verb, cls: type, columns: int = 100) -> str:
    """Everything a verb takes: usage, aliases, then each key with type, default and documentation."""
    lines = [f"fledge {verb.name}: {verb.summary}", "", f"usage: {usage(verb)}", ""]
    lines += [f"  --{name:<12} same as --{target}" for name, target in verb.aliases if name != target]
    lines += [f"  {name:<14} {text}" for name, text in FLAGS]
    ways = "as key=value, as --key value or in the YAML file" if verb.yaml else "as key=value or as --key value"
    lines += ["", f"Keys, {ways} (- and _ are the same):", ""]
    for key, kind, default, doc in config.flatten(cls):
        shown = show_default(default)
        lines.append(f"  {key}  {kind} ({shown if shown == 'required' else f'default {shown}'})")
        lines += wrap(doc, columns, "      ", "      ") if doc else []
    return "\n".join(lines)


def wrap(text: str, columns: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, max(40, columns), initial_indent=first, subsequent_indent=rest)


def show_default(value: Any) -> str:
    """A default as one would type it."""
    if value is None:
        return "none"
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Path):
        return str(value)
    return json.dumps(config.to_dict(value), ensure_ascii=False)
