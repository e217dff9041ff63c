"""What cleaning did, as lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHOWN_REASONS = 6


def summary_lines(steps: list[dict[str, Any]]) -> list[str]:
    """A line for each step, its reasons and what it found, and one example of each."""
    lines = []
    for row in steps:
        done = [
            f"{row[f'{what}_documents']:,} documents {what} ({row[f'{what}_bytes']:,} bytes)"
            for what in ("dropped", "changed")
            if row[f"{what}_documents"]
        ]
        lines.append(f"{row['step']:<16}{row['documents']:,} documents: {'; '.join(done) or 'nothing'}")
        lines += [f"{'':<16}{text}" for text in (*details(row), *examples(row), *evaluation_lines(row))]
    return lines


def details(row: dict[str, Any]) -> list[str]:
    """The most frequent reasons, and what was found."""
    rows = []
    for name in ("reasons", "found"):
        most = sorted(row.get(name, {}).items(), key=lambda item: (-item[1], item[0]))[:SHOWN_REASONS]
        shown = [f"{count:,} {what}" for what, count in most if count]
        rows += [f"{'why' if name == 'reasons' else name}: {', '.join(shown)}"] if shown else []
    return rows


def examples(row: dict[str, Any]) -> list[str]:
    rows = [f"e.g. {one['path']}: {one.get('begins', one['reason'])!r}" for one in row.get("dropped", [])[:1]]
    for one in row.get("changed", [])[:1]:
        before = f"{one['before']!r} -> " if "before" in one else ""
        rows.append(f"e.g. {one['path']}: {before}{one['after']!r}")
    return rows


def evaluation_lines(row: dict[str, Any], shown: int = 1) -> list[str]:
    """A line for each evaluation set, and its closest documents."""
    rows = []
    for one in row.get("evaluations", []):
        short = f", {one['too_short']:,} too short to look for" if one["too_short"] else ""
        rows.append(f"{Path(one['set']).name}: {one['found']:,} of {one['items']:,} items found{short}")
        for hit in one["closest"][:shown]:
            rows.append(
                f"  item {hit['item']}: {hit['share']:.0%} in {hit['document']}, {hit['share_in_all']:.0%} in all"
            )
    return rows
