"""A run of `fledge finetune` once more, by transformers and peft: their tokenizer, model and loss in a plain loop, from
the same first weights over the same rows in the same order.

python runs/heads/peer.py RUN OUT: the folder of a run that has ended (its run.yaml says what it was), from where it was
started. Every row's ids must be the run's. Writes OUT/losses.json and OUT/model, as save_pretrained writes it, and what
that answers to the held-out rows, read by fledge: OUT/predictions.jsonl. Whole models and LoRA; no dropout.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from fledge import config as reading
from fledge.batch import Batch
from fledge.data.task_batches import TaskBatches
from fledge.data.task_rows import Example, SpanExample, TextExample, WordsExample
from fledge.engine.predict import answers, batches_of
from fledge.model.folder import load_model, save_model
from fledge.recipes.finetune import Labelled, opened, tasked_model
from fledge.recipes.finetune_config import FinetuneConfig
from fledge.recipes.sft import tuned_by
from fledge.train.config import TrainConfig
from fledge.tune.load import load_served

CLASSES = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "span": transformers.AutoModelForQuestionAnswering,
}
SAID_EVERY = 50


def begun(config: FinetuneConfig, rows: Labelled, folder: Path) -> torch.nn.Module:
    """Their model with the weights that the run began with, in training, without dropout."""
    made = CLASSES[config.task]
    if config.tune.trains_all:
        save_model(tasked_model(load_model(rows.base), rows.kind, config.train.seed), folder, rows.tokenizer)
        return made.from_pretrained(folder).eval()
    import peft

    adapter = tuned_by(config.tune, rows.base, config.train.seed, rows.tokenizer)
    assert adapter is not None
    adapter = replace(adapter, prepare=lambda model: tasked_model(model, rows.kind, config.train.seed))
    adapter.write(adapter.begin(rows.base), folder, rows.tokenizer)
    names = {"id2label": dict(enumerate(rows.kind.names))} if rows.kind.names else {"num_labels": 1}
    base = made.from_pretrained(rows.base, **names)
    return peft.PeftModel.from_pretrained(base, folder, is_trainable=True).eval()


def row_of(reader: Any, task: str, names: tuple[str, ...], example: Example, longest: int, stride: int) -> list[dict]:
    """The rows that their tokenizer makes of an example, each with its labels: one, or every window of a context."""
    if isinstance(example, TextExample):
        found = reader(example.text, example.pair, truncation=True, max_length=longest)
        label = float(str(example.answer)) if task == "regression" else names.index(str(example.answer))
        return [{**found, "labels": label}]
    if isinstance(example, WordsExample):
        found = reader(list(example.words), is_split_into_words=True, truncation=True, max_length=longest)
        places, seen, labels = found.word_ids(), set(), []
        for word in places:
            labels.append(-100 if word is None or word in seen else names.index((example.tags or ())[word]))
            seen.add(word)
        return [{**found, "labels": labels}]
    assert isinstance(example, SpanExample)
    found = reader(example.question, example.context, truncation="only_second", max_length=longest, stride=stride,
                   return_overflowing_tokens=True, return_offsets_mapping=True)  # fmt: skip
    text, start = example.answers[0]
    return [
        {key: found[key][n] for key in ("input_ids", "token_type_ids", "attention_mask")}
        | ends(found["offset_mapping"][n], found.sequence_ids(n), start, start + len(text))
        for n in range(len(found["input_ids"]))
    ]


def ends(offsets: list[tuple[int, int]], sides: list[int | None], start: int, stop: int) -> dict[str, int]:
    """Where an answer's first and last token are, or 0 and 0 where it isn't whole."""
    inside = [place for place, side in enumerate(sides) if side == 1]
    first = [place for place in inside if offsets[place][0] <= start < offsets[place][1]]
    last = [place for place in inside if offsets[place][0] < stop <= offsets[place][1]]
    there = bool(first and last)
    return {"start_positions": first[0] if there else 0, "end_positions": last[0] if there else 0}


def inputs_of(batch: Batch, made: list[list[dict]], pad_id: int) -> dict[str, torch.Tensor]:
    """Their batch of the run's rows: of each example's windows the one with the ids of the run's row."""
    chosen = []
    for ids, document, windows in zip(batch.tokens.ids.tolist(), batch.tokens.doc.tolist(), made, strict=True):
        real = [one for one, there in zip(ids, document, strict=True) if there >= 0]
        same = [window for window in windows if window["input_ids"] == real]
        assert same, f"expected a row of ids {real}, got {[window['input_ids'] for window in windows]}"
        chosen.append(same[0])
    longest = max(len(row["input_ids"]) for row in chosen)
    fill = {"input_ids": pad_id, "labels": -100}

    def tensor(key: str) -> torch.Tensor:
        if not isinstance(chosen[0][key], list):
            return torch.tensor([row[key] for row in chosen])
        return torch.tensor([row[key] + [fill.get(key, 0)] * (longest - len(row[key])) for row in chosen])

    return {key: tensor(key) for key in chosen[0]}


def loss_of(out: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Their loss; of a span over the row's tokens alone (theirs counts padding as places, docs/finetune.md)."""
    if "start_positions" not in inputs:
        return out.loss
    there, nats = inputs["attention_mask"].bool(), torch.nn.functional.cross_entropy
    start, end = (logits.masked_fill(~there, -torch.inf) for logits in (out.start_logits, out.end_logits))
    return (nats(start, inputs["start_positions"]) + nats(end, inputs["end_positions"])) / 2


def optimizer_of(model: torch.nn.Module, train: TrainConfig) -> tuple[torch.optim.Optimizer, Any]:
    """torch's AdamW, decay on matrices, and its rate: a linear warm-up, a cosine to the floor."""
    trained = [one for one in model.parameters() if one.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, train.learning_rate, (train.beta1, train.beta2), train.epsilon)

    def share(step: int) -> float:
        if step < train.warmup_steps:
            return (step + 1) / (train.warmup_steps + 1)
        done = (step - train.warmup_steps) / (train.steps - train.warmup_steps)
        return train.learning_rate_floor + (1 - train.learning_rate_floor) * (1 + math.cos(math.pi * done)) / 2

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def trained(config: FinetuneConfig, rows: Labelled, model: torch.nn.Module, source: TaskBatches) -> list[float]:
    """The losses of every step of the plain loop."""
    train, tokenizer = config.train, transformers.AutoTokenizer.from_pretrained(rows.base)
    by_place = {example.place: example for example in rows.training}
    optimizer, schedule = optimizer_of(model, train)
    losses = []
    for step in range(train.steps):
        batch = source.batch(step)
        made = [
            row_of(tokenizer, config.task, rows.kind.names, by_place[name], rows.reader.max_tokens, config.data.stride)
            for name in batch.sample_ids
        ]
        inputs = inputs_of(batch, made, tokenizer.pad_token_id)
        loss = loss_of(model(**inputs), inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if not (step + 1) % SAID_EVERY:
            print(f"step {step + 1}/{train.steps} · loss {losses[-1]:.3f}", file=sys.stderr, flush=True)
    return losses


def config_of(run: Path) -> FinetuneConfig:
    return reading.from_dict(FinetuneConfig, reading.read_yaml(run / "run.yaml"))


def main(run: Path, out: Path) -> None:
    config = config_of(run)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = opened(config)
    out.mkdir(parents=True, exist_ok=True)
    model = begun(config, rows, out / "begin")
    source, _ = rows.batches(config)
    began = time.process_time()
    losses = trained(config, rows, model, source)
    seconds = time.process_time() - began
    model.save_pretrained(out / "model")
    rows.tokenizer.save(out / "model")
    read = load_served(out / "model").eval()
    found = answers(read, rows.kind, batches_of(rows.reader, rows.kind, rows.held_out, config.data.stride))
    (out / "predictions.jsonl").write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in found) + "\n")
    (out / "losses.json").write_text(json.dumps({"cpu_seconds": seconds, "losses": losses}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
