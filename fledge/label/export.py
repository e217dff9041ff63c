"""`fledge label export`: what annotators prefer, as rows that `align dpo` and `align reward` read."""

from __future__ import annotations

import json as json_text
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledge.errors import ConfigError, DataError, FledgeError
from fledge.label.config import LabelExportConfig
from fledge.label.items import Item, read_items, shortest
from fledge.label.places import open_labels
from fledge.label.tally import SKIPPED, TIED, TOO_FEW, UNSEEN, WINNER, Tally, tallies
from fledge.lineage import check_output_file, write_text_durably


def export_labels(config: LabelExportConfig, json: bool = False) -> dict[str, Any]:
    """Write a row for each item with a winner, in the order of the file of pairs; say how many had none, and why.

    Raises DataError, and writes nothing, where none has one, ConfigError where `out` is a file of something else."""
    store = open_labels(config.labels)
    try:
        meta, items, told = store.meta(), store.items(), tallies(store.votes())
    finally:
        store.close()
    check_output(config.out, meta)
    lines, outcomes = [], Counter[str]()
    for number, item in items.items():
        tally = told.get(number, Tally())
        outcome = tally.outcome(config.rule, config.min_votes)
        outcomes[outcome] += 1
        if outcome == WINNER:
            lines.append(json_text.dumps(row_of(item, tally), ensure_ascii=False) + "\n")
    dropped = {reason: outcomes[reason] for reason in (TIED, TOO_FEW, SKIPPED, UNSEEN)}
    shown = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
    if not lines:
        raise DataError(
            f"{config.labels}: expected a pair with a winner, found none of {len(items)} ({shown}); collect more votes "
            "with fledge label"
        )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_text_durably(config.out, "".join(lines))
    if not json:
        print(f"{config.out}: {len(lines)} pairs of {len(items)} by {config.rule}; left out: {shown}")
    return {"out": str(config.out), "rule": config.rule, "pairs": len(lines), "items": len(items), "left_out": dropped}


def check_output(path: Path, meta: Mapping[str, str]) -> None:
    """Raises ConfigError for a file that can't be written, and for one that is no earlier export, or the file of pairs
    (`meta` is that of the votes on it)."""
    check_output_file(path)
    if path.exists() and (not is_export(path) or (path.name == meta["pairs"] and digest_of(path) == meta["digest"])):
        raise ConfigError(f"out: expected a new file or an earlier export, got {path}; choose another, or remove it")


def is_export(path: Path) -> bool:
    """By the first row."""
    try:
        with open(path, encoding="utf-8") as file:
            row = json_text.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"votes", "annotators"} <= row.keys()


def digest_of(path: Path) -> str:
    """The digest of a file's pairs; empty where it has none."""
    try:
        return read_items(path).digest()
    except FledgeError:
        return ""


def row_of(item: Item, tally: Tally) -> dict[str, Any]:
    """TRL's form, with how many were for and against it beside."""
    first, second = (item.first, tally.first), (item.second, tally.second)
    (chosen, n_for), (rejected, n_against) = (first, second) if tally.first > tally.second else (second, first)
    return {
        "prompt": shortest(item.prompt, "user"),
        "chosen": shortest(chosen, "assistant"),
        "rejected": shortest(rejected, "assistant"),
        "votes": {"chosen": n_for, "rejected": n_against, "tie": tally.ties, "skip": tally.skips},
        "annotators": tally.judgements + tally.skips,
    }
