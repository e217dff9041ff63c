"""datacard.md: what a corpus or dataset folder is made of, for people. Made from card.json alone; `data stats` adds
figures below. Imports no torch."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from fledge.config import to_dict
from fledge.data.config import BuildConfig
from fledge.lineage import write_text_durably

DATA_CARD = "datacard.md"
FIGURES = "\n## Figures\n"  # where `data stats` begins


def write_data_card(folder: Path, card: dict[str, Any], figures: str = "") -> None:
    """Write the folder's datacard.md, unless it is there and as it should be, with figures or without."""
    path = folder / DATA_CARD
    text = data_card(card)
    old = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    wanted = f"{text}{FIGURES}\n{figures}\n" if figures else text
    if old != wanted and (figures or old.partition(FIGURES)[0] != text):
        write_text_durably(path, wanted)


def data_card(card: dict[str, Any]) -> str:
    """The card's lineage as Markdown: command, sources with digests, steps with counts, tokenizer, licence."""
    facts, config = card["facts"], card["config"]
    corpus, shards = facts["corpus"], facts.get("shards")
    lines = [
        f"# {Path(config['out']).name}",
        "",
        f"A {card['kind']} made by fledge {card['fledge']}; digest `{card['digest']}`.",
        "",
        f"Licence: {config.get('licence') or 'not stated'}",
        "",
        "```sh",
        command(config),
        "```",
        "",
        "## Sources",
        "",
        "| source | documents | bytes | digest |",
        "|---|---|---|---|",
    ]
    for source in corpus["sources"]:
        row = (cell(source["name"]), f"{source['documents']:,}", f"{source['bytes']:,}", f"`{source['digest'][:16]}`")
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "## Steps", ""]
    lines += [f"- left out, {name}: {count:,}" for name, count in left_out(corpus)]
    lines += [f"- dropped, {cell(reason)}: {count:,}" for reason, count in corpus["dropped"].items()]
    lines += [
        f"- held out, {corpus['held_out_by']}: {corpus['val_documents']:,} documents, {corpus['val_bytes']:,} bytes",
        f"- to train on: {corpus['train_documents']:,} documents, {corpus['train_bytes']:,} bytes",
    ]
    if shards is not None:
        lines.append(
            f"- tokenised by `{card['parents']['tokenizer'][:16]}` ({shards['tokenizer_kind']}, "
            f"{shards['vocab_size']:,} ids): {shards['train_tokens']:,} tokens to train on, "
            f"{shards['val_tokens']:,} held out, {shards['bytes_per_token']:.2f} bytes a token"
        )
    return "\n".join(lines) + "\n"


def left_out(corpus: dict[str, Any]) -> list[tuple[str, int]]:
    """(what, how many) of files and rows that were no documents."""
    files = [(f"{name} files", corpus[f"{name}_files"]) for name in ("binary", "empty") if corpus[f"{name}_files"]]
    return [*files, *((f"bad rows ({reason})", count) for reason, count in corpus["bad_rows"].items())]


def command(config: dict[str, Any]) -> str:
    """The command line that gives a folder of this config."""
    words = ["fledge data build", f"--out {shlex.quote(str(config['out']))}"]
    for name, default in plain_defaults().items():
        value = config.get(name, default)
        if name == "source" or value == default or name == "out":
            continue
        inner = value.items() if isinstance(value, dict) else ()
        words += [f"{name}.{key}={shlex.quote(str(v))}" for key, v in inner if v != default[key]]
        words += [] if isinstance(value, dict) else [f"{name}={shlex.quote(str(value))}"]
    source = config["source"]
    words[1:1] = [f"--source {shlex.quote(name)}" for name in ([source] if isinstance(source, str) else source)]
    return " ".join(words)


def plain_defaults() -> dict[str, Any]:
    """The defaults of BuildConfig as plain values."""
    known = {}
    for field in fields(BuildConfig):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        known[field.name] = to_dict(default)
    return known


def cell(text: str) -> str:
    """A text for a cell of a table, on one line."""
    return " ".join(text.split()).replace("|", "\\|")[:120]
