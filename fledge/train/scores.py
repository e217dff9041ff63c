"""The evaluation's part of the report: bits per byte beside compressors, held-out questions. Imports no torch.

Reads what `fledge evaluate` wrote; a figure that isn't there is left out.
"""

from __future__ import annotations

from typing import Any

from fledge.train.markup import Child, Html, table, tag
from fledge.train.plot import bars
from fledge.train.record import number

COMPARED = (
    ("bits_per_byte", "this model"),
    ("before_bits_per_byte", "before tuning"),
    ("bigram_bits_per_byte", "token bigram"),
    ("gzip_bits_per_byte", "gzip -9"),
    ("xz_bits_per_byte", "xz -9"),
)
RATIOS = (
    ("ratio_to_gzip", "this model / gzip -9"),
    ("ratio_to_xz", "this model / xz -9"),
    ("change_bits_per_byte", "this model - before tuning"),
)
ANSWERS = (
    ("answer_bits_per_byte", "bits per byte", False),
    ("exact", "exact answers", True),
    ("word_f1", "word F1", True),
)


def headline(evaluation: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, figure, note) for the top of the page."""
    bits = number(evaluation.get("bits_per_byte"))
    if bits is None:
        return []
    others = (("before tuning", "before_bits_per_byte"), ("xz -9", "xz_bits_per_byte"))
    beside = [f"{name} {value:.3f}" for name, key in others if (value := number(evaluation.get(key))) is not None]
    return [("Bits per byte, held out", f"{bits:.3f}", ", ".join(beside))]


def scores(evaluation: dict[str, Any]) -> Html:
    """The section about the evaluation."""
    questions = evaluation.get("questions")
    return tag(
        "section",
        tag("h2", "Evaluation"),
        text_scores(evaluation) if number(evaluation.get("bits_per_byte")) is not None else None,
        question_scores(questions) if isinstance(questions, dict) else None,
    )


def text_scores(evaluation: dict[str, Any]) -> Html:
    """Bits per byte of the model beside compressors and a bigram, and on what."""
    values = [(name, number(evaluation.get(key)), key) for key, name in COMPARED]
    found = [(name, value, key == "bits_per_byte") for name, value, key in values if value is not None]
    rows: list[tuple[Child, ...]] = [
        score_row(name, evaluation, key, 4) for key, name in (*COMPARED, *RATIOS) if key in evaluation
    ]
    method = evaluation.get("method")
    notes = [f"{key}: {value}" for key, value in method.items()] if isinstance(method, dict) else []
    what = "{text} ({split}: {documents} documents, {bytes} bytes)".format(
        **{key: grouped(evaluation.get(key, "?")) for key in ("text", "split", "documents", "bytes")}
    )
    return tag(
        "div",
        tag("h3", "Bits per byte of held-out text; less is better"),
        tag("p", what, class_="quiet"),
        bars(found, "bits"),
        table(("", "value", "95 % interval", "n"), rows, (1, 2, 3)),
        tag("details", tag("summary", "How it was measured"), *(tag("p", note, class_="quiet") for note in notes)),
        documents(evaluation.get("per_document")),
    )


def score_row(name: str, figures: dict[str, Any], key: str, digits: int, percent: bool = False) -> tuple[Child, ...]:
    """Name, value, interval and n of one figure and its entry under `scores`."""

    def shown(value: object) -> str:
        found = number(value)
        if found is None:
            return "?"
        return f"{100 * found:.1f} %" if percent else f"{found:.{digits}f}"

    entry = figures.get("scores", {}).get(key) if isinstance(figures.get("scores"), dict) else None
    entry = entry if isinstance(entry, dict) else {}
    interval = entry.get("interval")
    between = (
        f"{shown(interval[0])} to {shown(interval[1])}" if isinstance(interval, list) and len(interval) == 2 else ""
    )
    return name, shown(figures.get(key)), between, grouped(entry.get("n", ""))


def documents(rows: Any) -> Html | None:
    """Every held-out document with its figures."""
    if not isinstance(rows, list) or not rows:
        return None
    shown = [row for row in rows if isinstance(row, dict)]
    columns = ("bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte")
    made: list[tuple[Child, ...]] = []
    for row in shown:
        figures = (number(row.get(key)) for key in columns)
        made.append(
            (str(row.get("path", "")), grouped(row.get("bytes", "")), *(f"{f:.3f}" if f else "" for f in figures))
        )
    head = ("document", "bytes", "this model", "gzip -9", "xz -9")
    return tag("details", tag("summary", f"The {len(shown)} held-out documents"), table(head, made, (1, 2, 3, 4)))


def question_scores(found: dict[str, Any]) -> Html:
    """Held-out questions: the scores now and before, then answers to read."""
    rows: list[tuple[Child, ...]] = []
    for key, name, percent in ANSWERS:
        if key in found:
            rows.append(score_row(name, found, key, 3, percent))
        if f"before_{key}" in found:
            rows.append(score_row(f"{name}, before tuning", found, f"before_{key}", 3, percent))
    samples = found.get("samples")
    samples = [sample for sample in samples if isinstance(sample, dict)] if isinstance(samples, list) else []
    return tag(
        "div",
        tag("h3", "Held-out questions"),
        table(("", "value", "95 % interval", "n"), rows, (1, 2, 3)),
        tag("p", str(found.get("method", "")), class_="quiet"),
        *(answers(sample) for sample in samples),
    )


def answers(sample: dict[str, Any]) -> Html:
    """One question with its reference and the answers before and after tuning."""
    columns = (("reference", "reference"), ("before", "before tuning"), ("answer", "after tuning"))
    cells = (tag("div", tag("p", name, class_="unit"), tag("pre", sample[k])) for k, name in columns if k in sample)
    return tag("div", tag("h3", sample.get("question", "")), tag("div", *cells, class_="pair"))


def grouped(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
