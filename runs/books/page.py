"""docs/books.md and its pictures from the three finished runs of this folder and their baselines.

`python runs/books/page.py out/books-gpt-run out/books-bert-run out/books-t5-run`, after the last line of
`fledge baselines RUN --json` of each has been written to RUN/baselines.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fledge.train.curves import validation
from fledge.train.plot import HEIGHT, WIDTH, Chart, Line, svg
from fledge.train.record import RunRecord, read_run

DOCS = Path(__file__).resolve().parents[2] / "docs"
STYLE = """<style>
svg { background: #fbfaf8 } text { font: 12px system-ui, sans-serif; fill: #5d5e66 } .grid { stroke: #e3e1dc }
.line { fill: none; stroke-width: 1.6 } .first { stroke: #bcd3ef } .second { stroke: #c2570c; fill: #c2570c }
polyline { fill: none !important }
.third { stroke: #1a7f4b; stroke-dasharray: 5 3 } .fourth { stroke: #7b4fb5; stroke-dasharray: 2 3 }
</style>"""
COUNTED = {"unigram": "the tokens' frequencies", "bigram": "the token before", "neighbours": "the tokens on both sides"}
MODELS = {"causal": "GPT", "masked+next": "BERT", "spans": "T5"}
INTRODUCTION = """\
# Three models of classic books

*Written by `runs/books/page.py`.*

A GPT, a BERT and a T5 of four layers of width 192, trained on 136 classic books and tried on seven others; the
recipes stand in `runs/books/`. Beside each stand models that only count the training set's tokens, judged on the same
held-out targets (`fledge baselines`). Losses are in nats a target.

"""


def picture(run: RunRecord, counted: dict[str, Any]) -> str:
    """The run's loss a step, its validations, and the counting models' losses as level lines."""
    masked = bool(run.series("step", "loss_masked"))
    trained = run.series("step", "loss_masked" if masked else "loss")
    tried = validation(run, "val_masked_loss" if masked else "val_loss")
    ends = (trained[0][0], trained[-1][0])
    lines = [Line("training", trained, "first"), Line("held out", tried, "second", dots=True)]
    for style, name in zip(("third", "fourth"), losses_of(counted), strict=False):
        lines.append(Line(name, tuple((x, counted[f"{name}_loss"]) for x in ends), style))
    drawn = str(svg(lines, Chart(f"{run.name}: loss", tuple(lines))))
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{2 * HEIGHT}"'
    return drawn.replace("<svg", opening, 1).replace(">", ">" + STYLE, 1) + "\n"


def losses_of(counted: dict[str, Any]) -> list[str]:
    return [name for name in COUNTED if counted.get(f"{name}_loss") is not None]


def row(run: RunRecord, counted: dict[str, Any]) -> str:
    model = counted["model"]
    loss = model.get("val_masked_loss", model["val_loss"])
    right = model.get("val_masked_accuracy")
    others = []
    for name in losses_of(counted):
        figure = with_accuracy(counted[f"{name}_loss"], counted.get(f"{name}_accuracy"), right is not None)
        others.append(f"{figure} by {COUNTED[name]}")
    end = run.end
    cells = [
        MODELS[counted["objective"]],
        f"{run.start['parameters']:,}",
        f"{end['steps']:,}",
        f"{end['tokens']:,}",
        f"{end['cpu_seconds']:,.0f}",
        with_accuracy(loss, right, right is not None),
        "; ".join(others),
    ]
    return f"| {' | '.join(cells)} |"


def with_accuracy(loss: float, accuracy: float | None, wanted: bool) -> str:
    return f"{loss:.3f}" + (f" ({accuracy:.1%} right)" if wanted and accuracy is not None else "")


def main(folders: list[Path]) -> None:
    head = ["model", "parameters", "steps", "tokens", "CPU seconds", "held-out loss", "counting alone"]
    lines, pictures = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)], []
    for folder in folders:
        run, counted = read_run(folder), json.loads((folder / "baselines.json").read_text(encoding="utf-8"))
        name = f"books-{MODELS[counted['objective']].lower()}.svg"
        (DOCS / name).write_text(picture(run, counted), encoding="utf-8")
        lines.append(row(run, counted))
        strokes = zip(losses_of(counted), ("dashes", "dots"), strict=False)
        levels = " and ".join(f"{COUNTED[one]} ({stroke})" for one, stroke in strokes)
        told = f"Pale: each step's loss; marked: held-out books; level: what counting {levels} reaches."
        pictures.append(f"## {MODELS[counted['objective']]}\n\n{told}\n\n![Loss by steps]({name})\n")
    (DOCS / "books.md").write_text(INTRODUCTION + "\n".join(lines) + "\n\n" + "\n".join(pictures), encoding="utf-8")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
