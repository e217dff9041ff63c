"""Heads tuned on MiniLM by fledge over seeds and by transformers (and peft) once: losses step by step, and figures of
the same held-out rows.

python runs/heads/beside.py MINILM DATA OUT [TASK …]: the model folder, the folder of the data sets, one for the runs
(those that ended are not run again), and names of TASKS, or all. OUT/beside.json has the figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mood_table
import numpy as np
import peer
import questions
from ended import ended

from fledge.data.task_rows import Example, SpanExample, TextExample, WordsExample, read_examples
from fledge.evals.task_scores import correlation, entities, plain, ranks, word_f1

HERE = Path(__file__).parent
PEER_SEED = 1
RESAMPLES = 2000
Figure = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Task:
    """A config beside this file, where its rows are, what its figure is called, what more is said, and the seeds (the
    mood's others are in mood_table.py)."""

    config: str
    train: str
    val: str
    figure: str
    words: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)


MOOD = ("{out}/mood/train.jsonl", "{out}/mood/val.jsonl", "accuracy")
TASKS = {
    "names": Task("names", "{data}/ner_wnut17/wnut17train.conll", "{data}/ner_wnut17/emerging.dev.conll", "entity F1"),
    "likeness": Task(
        "likeness", "{data}/sts_benchmark/sts-train.csv.gz", "{data}/sts_benchmark/sts-dev.csv.gz", "Spearman"
    ),
    "questions": Task("questions", "{out}/rows/train.jsonl", "{out}/rows/val.jsonl", "word F1"),
    "mood": Task("mood", *MOOD, mood_table.METHODS["every weight"], (1,)),
    "mood-lora": Task("mood", *MOOD, mood_table.METHODS["LoRA, rank 8"], (1,)),
}


def figure_of(found: Sequence[dict[str, Any]], examples: Sequence[Example]) -> Figure:
    """The task's figure of any of the rows, by their numbers."""
    first = examples[0]
    if isinstance(first, WordsExample):
        counts = np.zeros((len(examples), 2))
        for row, (one, example) in enumerate(zip(found, examples, strict=True)):
            mine, right = entities(one["tags"]), entities(example.tags or ())  # type: ignore[union-attr]
            counts[row] = 2 * len(mine & right), len(mine) + len(right)
        return lambda chosen: float(counts[chosen, 0].sum() / max(counts[chosen, 1].sum(), 1))
    if isinstance(first, TextExample) and "score" in found[0]:
        told = np.array([one["score"] for one in found])
        right = np.array([float(example.answer) for example in examples])  # type: ignore[union-attr,arg-type]
        return lambda chosen: correlation(ranks(told[chosen]), ranks(right[chosen]))
    if isinstance(first, SpanExample):
        shares = [
            max(word_f1(plain(one["answer"]), plain(text)) for text, _ in example.answers)  # type: ignore[union-attr]
            for one, example in zip(found, examples, strict=True)
        ]
    else:
        shares = [float(one["label"] == str(e.answer)) for one, e in zip(found, examples, strict=True)]  # type: ignore[union-attr]
    rows = np.array(shares)
    return lambda chosen: float(rows[chosen].mean())


def answers_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def with_interval(figure: Figure, n: int) -> list[float]:
    """Figure of all rows, and a 95 % interval over rows drawn again."""
    random = np.random.default_rng(0)
    drawn = [figure(random.integers(n, size=n)) for _ in range(RESAMPLES)]
    return [round(value, 4) for value in (figure(np.arange(n)), *np.quantile(drawn, [0.025, 0.975]))]


def measured(name: str, task: Task, words: dict[str, str], out: Path) -> dict[str, Any]:
    """Runs of one task, the peer's beside them, and what came out."""
    train, val = (text.format(**words) for text in (task.train, task.val))
    typed = [str(HERE / f"{task.config}.yaml"), f"model.path={words['model']}", f"data.path={train}", f"data.val={val}"]
    folders = [out / f"{name}-{seed}" for seed in task.seeds]
    costs = [
        ended([*typed, *task.words, f"train.seed={seed}"], folder)
        for seed, folder in zip(task.seeds, folders, strict=True)
    ]
    other, beside = out / f"{name}-peer", folders[task.seeds.index(PEER_SEED)]
    if not (other / "losses.json").is_file():
        peer.main(beside, other)
    config = peer.config_of(beside)
    examples = read_examples(val, config.task, config.data)
    figures = [figure_of(answers_in(folder), examples) for folder in folders]
    theirs = figure_of(answers_in(other), examples)
    told = json.loads((other / "losses.json").read_text())
    log = [json.loads(line) for line in (beside / "log.jsonl").read_text().splitlines()]
    losses = np.array([event["loss"] for event in log if event["kind"] == "step"])
    apart = np.abs(losses - np.array(told["losses"]))
    n = len(examples)
    return {
        "rows": n,
        "figure": task.figure,
        "mean": with_interval(lambda chosen: float(np.mean([figure(chosen) for figure in figures])), n),
        "by_seed": [round(figure(np.arange(n)), 4) for figure in figures],
        "cpu_seconds": [round(cost["cpu_seconds"]) for cost in costs],
        "steps": len(losses),
        "peer": with_interval(theirs, n),
        "peer_cpu_seconds": round(told["cpu_seconds"]),
        "fledge_less_peer": with_interval(
            lambda chosen: figures[task.seeds.index(PEER_SEED)](chosen) - theirs(chosen), n
        ),
        "losses_apart_of_30": float(apart[:30].max()),
        "losses_apart": float(apart.max()),
    }


def main(model: str, data: Path, out: Path, names: list[str]) -> None:
    mood_table.split(data / "cls_rotten_tomatoes" / "rt.jsonl.gz", out / "mood")
    questions.main(data, out / "rows")
    path = out / "beside.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    for name in names or TASKS:
        found[name] = measured(name, TASKS[name], {"model": model, "data": str(data), "out": str(out)}, out)
        print(json.dumps({name: found[name]}), flush=True)
        path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
