"""`fledge label export`: what annotators prefer, as rows that `align dpo` and `align reward` read."""

from __future__ import annotations

import json as json_text
from collections import Counter
from typing import Any

from fledge.errors import DataError
from fledge.label.config import LabelExportConfig
from fledge.label.items import Item, shortest
from fledge.label.places import open_labels
from fledge.label.tally import SKIPPED, TIED, TOO_FEW, UNSEEN, WINNER, Tally, tallies
from fledge.lineage import check_output_file, write_text_durably


def export_labels(config: LabelExportConfig, json: bool = False) -> dict[str, Any]:
    """Write a row for each item with a winner, in the order of the file of pairs; say how many had none, and why.

    Raises DataError, and writes nothing, where none has one."""
    store = open_labels(config.labels)
    try:
        items, told = store.items(), tallies(store.votes())
    finally:
        store.close()
    check_output_file(config.out)
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
