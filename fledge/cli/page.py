"""docs/cli.md, written from the table of verbs and the config classes: `python -m fledge.cli.page > docs/cli.md`."""

from __future__ import annotations

from fledge import config
from fledge.cli.help import show_default, usage
from fledge.cli.main import named
from fledge.cli.verbs import VERBS, Verb

INTRODUCTION = """\
# The command line

*Written by `make docs` from the program itself; a test keeps it current.*

`fledge VERB [words] [FILE.yaml] [key=value | --key value ...] [--json] [--help]`

- A key is a dotted path into the verb's config: `train.steps=100`, `--train.steps 100` and `--train.steps=100` are the
  same, and so are `-` and `_` in keys. In a YAML file the same keys are nested. The command line wins over the file,
  the file over the defaults. An unknown key is an error with a suggestion.
- Text is taken as typed: `--prompt 3` is the text 3. Other values are YAML. `key=null` unsets an optional text.
- A true/false key is also a flag: `--key` and `--no-key`.
- A list of texts or numbers grows by repeating `--key item`, or is set at once by `key=[a, b]`.
- After a bare `--` every word is a positional.
- `--json`: the last line of standard output is the result as one JSON object; after an error it is
  `{"error": {"type", "message", "exit_code"}}`. What is meant for people goes to standard error.
- Exit codes: [exit-codes.md](exit-codes.md). `FLEDGE_DEBUG=1` shows the traceback of an error.
- `fledge config schema VERB` prints a verb's keys as JSON schema, for editors.
"""


def page() -> str:
    """The whole of docs/cli.md."""
    contents = [f"| [`{verb.name}`](#{anchor(verb)}) | {verb.summary} |" for verb in VERBS]
    parts = [INTRODUCTION, "| verb | what it does |\n|---|---|\n" + "\n".join(contents) + "\n"]
    return "\n".join([*parts, *(section(verb) for verb in VERBS)])


def anchor(verb: Verb) -> str:
    return "fledge-" + verb.name.replace(" ", "-")


def section(verb: Verb) -> str:
    """One verb: usage, aliases and the table of its keys."""
    lines = [f"## fledge {verb.name}", "", f"{verb.summary[0].upper()}{verb.summary[1:]}.", "", f"`{usage(verb)}`", ""]
    other = [f"`--{name}` is `--{target}`" for name, target in verb.aliases if name != target]
    lines += [f"{'; '.join(other)}.", ""] if other else []
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, doc in config.flatten(named(verb.config)):
        lines.append(f"| `{key}` | {cell(kind)} | {cell(show_default(default))} | {cell(doc)} |")
    return "\n".join([*lines, ""])


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") or " "


if __name__ == "__main__":
    print(page(), end="")
