"""Make the golden artefacts of this release: what later releases must open and go on from.

    python -m tests.golden.make

writes tests/golden/VERSION/ (once: a release's files never change) by the commands in `MADE`, in that folder: a
tokenizer, a dataset, runs that were stopped half-way (decoder with AdamW, decoder with Muon and averaged weights,
encoder, encoder-decoder) and a finished model; and expected.json, what going on with each run gave when it was made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import fledge
from fledge.cli.main import main

HERE = Path(__file__).parent
RUNS = ("decoder", "muon", "encoder", "encoder_decoder")
TINY = "model.width=4 model.layers=1 model.heads=1 model.context_tokens=16"
TRAIN = "train.steps=8 train.rows=2 train.threads=1 train.learning_rate=0.01 train.save_every_steps=3 train.keep_last=1"
STOP = "train.stop_after_steps=4 train.eval_every_steps=2"
COMMON = f"data.path=dataset {TINY} {TRAIN}"
MADE = (
    "tokenizer train text=text.txt out=tokenizer kind=bpe vocab_size=280",
    "tokenizer train text=text.txt out=pieces kind=wordpiece vocab_size=48",
    "data build out=dataset source=text.txt tokenizer=pieces minimum_eval_bytes=1 val_fraction=0.2",
    f"pretrain run.dir=decoder model.family=llama {COMMON} {STOP}",
    f"pretrain run.dir=muon model.family=gpt2 train.optimizer=muon train.ema_decay=0.9 {COMMON} {STOP}",
    f"pretrain run.dir=encoder model.family=bert objective=masked {COMMON} {STOP}",
    f"pretrain run.dir=encoder_decoder model.family=t5 objective=spans {COMMON} {STOP}",
    f"pretrain run.dir=finished model.family=llama {COMMON}",
)
WORDS = "pack my box with five dozen liquor jugs while the quick brown fox jumps over a lazy dog"
SAMPLE = "Pack my box with five dozen liquor jugs, naïve 北京! 2026"


def text() -> str:
    words = WORDS.split()
    lines = (" ".join(words[(i * k + k) % len(words)] for k in range(1, 9)) for i in range(60))
    return "".join(f"{line}.\n" for line in lines)


def command(words: str) -> None:
    """Run one command here; an exit of 75 (stopped, as asked) is as good as 0."""
    code = main([*words.split(), *(["--json"] if words.startswith("pretrain") else [])])
    assert code == (75 if STOP in words else 0), (code, words)


def going_on(run: str) -> dict[str, object]:
    """Go on with a stopped run to its end, by its own run.yaml: the losses of the steps that followed, and the last
    validation."""
    folder = Path(run)
    first = max(step for step, _ in losses(folder))
    command(f"pretrain {folder / 'run.yaml'} train.stop_after_steps=0")
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (end,) = [event for event in events if event["kind"] == "end"]
    later = {str(step): loss for step, loss in losses(folder) if step > first}
    return {"losses": later, **{key: end[key] for key in ("val_loss", "ema_val_loss") if key in end}}


def losses(run: Path) -> list[tuple[int, float]]:
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(event["step"], event["loss"]) for event in events if event["kind"] == "step"]


def model_logits(folder: Path) -> list[float]:
    """The last logits of a few ids by a model folder."""
    from fledge.batch import OneDocument, one_document
    from fledge.model.folder import load_model

    with torch.no_grad():
        logits = load_model(folder)(one_document(torch.tensor([[5, 6, 7, 8]])), OneDocument())
    return [float(x) for x in logits[0, -1]]


def expected() -> dict[str, object]:
    """What the artefacts here say and do."""
    from fledge.data.shards import open_shards
    from fledge.text.tokenizer import Tokenizer

    dataset = open_shards(Path("dataset"))
    tokens = {split: list(map(int, getattr(dataset, split).tokens[:50])) for split in ("train", "val")}
    return {
        "tokenizer": {"text": SAMPLE, "ids": list(Tokenizer.load("tokenizer").encode(SAMPLE))},
        "dataset": {"digest": dataset.digest, "tokens": tokens},
        "model": model_logits(Path("model")),
        "runs": {run: going_on(run) for run in RUNS},
    }


def make(target: Path) -> None:
    """Run every command in `target`, keep what a release leaves behind, then go on in a copy."""
    target.mkdir()
    with contextlib.chdir(target):
        Path("text.txt").write_text(text(), encoding="utf-8")
        for words in MADE:
            command(words)
        Path("finished/model").rename("model")
        for folder in ("finished", "pieces"):
            shutil.rmtree(folder)
        for lock in Path(".").glob("*/run.lock"):
            lock.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(target, scratch, dirs_exist_ok=True)
        with contextlib.chdir(scratch):
            found = expected()
    (target / "expected.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = HERE / fledge.__version__
    if folder.exists():
        sys.exit(f"{folder}: is there already; the files of a release never change")
    make(folder)
