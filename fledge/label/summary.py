"""What `fledge label report` prints for people."""

from __future__ import annotations

from typing import Any


def summary(found: dict[str, Any]) -> str:
    """The figures as aligned tables, with n and interval."""
    lines = [f"{found['labels']}: {found['votes']} votes on {found['items']} pairs of {found['pairs']}"]
    if not found["annotators"]:
        return "\n".join([*lines, "nobody has voted yet"])
    head = ["annotator", "done", "left", "ties", "skipped", "s/pair", "first shown wins (95 %)"]
    people = [
        [name, *(str(one[key]) for key in ("done", "left", "ties", "skipped")),
         f"{one['seconds_median']:.1f}", figure(one["first_shown"])]
        for name, one in found["annotators"].items()
    ]  # fmt: skip
    people.append(["all", str(found["votes"]), *[""] * 4, figure(found["first_shown"])])
    lines += ["", *table(head, people)]
    pairs = found["agreement"]["pairs"]
    if pairs:
        rows = [[" and ".join(p["annotators"]), str(p["n"]), figure(p["same"]), figure(p["kappa"])] for p in pairs]
        lines += ["", *table(["annotators", "both judged", "same (95 %)", "Cohen's kappa (95 %)"], rows)]
    alpha = found["agreement"]["alpha"]
    n = f" over {alpha['n']} pairs that two or more judged" if alpha else " (needs two who judged the same pairs)"
    lines += ["", f"Krippendorff's alpha: {figure(alpha)}{n}"]
    if found["with_file"]:
        with_file = found["with_file"]
        lines.append(f"preferences that are the file's own: {figure(with_file)} of {with_file['n']}")
    if found["reasons"]:
        lines.append("reasons: " + ", ".join(f"{reason} {n}" for reason, n in found["reasons"].items()))
    return "\n".join(lines)


def figure(score: dict[str, Any] | None) -> str:
    if score is None:
        return "none"
    if score["interval"] is None:
        return f"{score['value']:.3f}"
    low, high = score["interval"]
    return f"{score['value']:.3f}  {low:.3f}..{high:.3f}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
