"""`fledge finetune`: a task head on a model, tuned on labelled rows; scored afterwards as its folder answers.

B rows, T tokens of a row, L labels.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.batch import PADDING, Batch, Loss, Term
from fledge.data.keyed_batches import EveryRow
from fledge.data.task_batches import ChoiceBatches, TaskBatches
from fledge.data.task_framing import Reader
from fledge.data.task_rows import Example, TextExample, WordsExample, label_names
from fledge.engine.predict import TaskKind, answers, batches_of, kind_of, n_virtual, reader_of
from fledge.errors import ConfigError
from fledge.evals.score import Score
from fledge.evals.task_scores import entity_scores, label_scores, number_scores, span_scores
from fledge.lineage import artefact_digest, write_text_durably
from fledge.log import say
from fledge.model.config import ModelConfig
from fledge.model.folder import find_model, load_model, read_config
from fledge.model.retask import retask, task_config
from fledge.model.transformer import Transformer
from fledge.recipes.finetune_config import FinetuneConfig
from fledge.recipes.labelled import PREDICTIONS, check_named, data_digest, rows_of, run_tuned
from fledge.recipes.language import LanguageRecipe, spaced
from fledge.recipes.sft import tuned_by
from fledge.recipes.text2text import text2text
from fledge.text.tokenizer import Tokenizer
from fledge.tune.load import load_served, served_tokenizer


@dataclass
class TaskRecipe(LanguageRecipe):
    """Train a task head and its body. `label_weights` float32 [L]: how much a row of each label counts."""

    task: TaskKind = TaskKind("sequence")
    label_weights: Tensor | None = None

    def weights(self, batch: Batch) -> dict[str, float]:
        """What the loss is divided by: rows, labelled words or questions, each by its label's weight."""
        return {self.task.task: self.weight_of(batch)}

    def weight_of(self, batch: Batch) -> float:
        if self.task.task == "token":
            there = batch.weight > 0
            if self.label_weights is None:
                return float(there.sum())
            return float(self.label_weights.to(batch.targets.device)[batch.targets[there]].sum())
        assert batch.answers is not None
        if self.task.task == "choice":
            return float(batch.answers.sum())
        if self.task.task == "sequence" and self.task.several:
            return float(batch.answers.numel())
        if self.task.task == "sequence" and self.label_weights is not None:
            return float(self.label_weights.to(batch.answers.device)[batch.answers].sum())
        return float(len(batch.answers))

    def loss(self, batch: Batch) -> Loss:
        return Loss({self.task.task: Term(self.total(self.logits_of(batch), batch), self.weight_of(batch))})

    def logits_of(self, batch: Batch) -> Tensor:
        """The head's numbers, float32."""
        return self.model.head(self.task.head, batch.tokens, batch.layout).float()

    def total(self, logits: Tensor, batch: Batch) -> Tensor:
        """Σ nats (squared errors of a regression) over the batch, weighed by label."""
        weights = None if self.label_weights is None else self.label_weights.to(logits.device)
        if self.task.task == "token":
            there = batch.weight > 0
            return F.cross_entropy(logits[there], batch.targets[there], weights, reduction="sum")
        assert batch.answers is not None
        if self.task.task == "regression":
            return ((logits[:, 0] - batch.answers) ** 2).sum()
        if self.task.task == "span":  # each end counts half, as in transformers; padding is no place
            ends = logits.masked_fill((batch.tokens.doc == PADDING)[..., None], -math.inf)
            return F.cross_entropy(ends, batch.answers, reduction="sum") / 2
        if self.task.task == "choice":
            by_question = logits.reshape(self.n_questions(batch), -1)
            right = batch.answers.reshape(len(by_question), -1).argmax(1)
            return F.cross_entropy(by_question, right, reduction="sum")
        if self.task.several:
            return F.binary_cross_entropy_with_logits(logits, batch.answers, reduction="sum")
        return F.cross_entropy(logits, batch.answers, weights, reduction="sum")

    def n_questions(self, batch: Batch) -> int:
        """Questions of a batch of choices. Raises ConfigError for a part of one."""
        assert batch.answers is not None
        n_choices = getattr(self.source, "n_choices", 1)
        if len(batch.answers) % n_choices:
            raise ConfigError(
                f"train.micro_rows: expected multiples of the {n_choices} choices of a question, got "
                f"{len(batch.answers)} rows"
            )
        return len(batch.answers) // n_choices

    def measured(self, held_out: Sequence[Batch], rows: int) -> dict[str, float]:
        """`val_loss`, and `val_accuracy` of labels, words and questions."""
        total, weight, right, n = self.totals(held_out, spaced(held_out, rows), self.sums) or [0.0] * 4
        found = {"val_loss": total / weight if weight else math.nan, "val_rows": n}
        return found if self.task.task in ("regression", "span") else found | {"val_accuracy": right / max(n, 1.0)}

    @torch.no_grad()
    def sums(self, batch: Batch) -> list[float]:
        """Of a held-out batch: loss and its weight, right answers and all."""
        batch = batch.to(self.model.embedding.weight.device)
        logits = self.logits_of(batch)
        right, n = self.right(logits, batch)
        return [float(self.total(logits, batch)), self.weight_of(batch), right, n]

    def right(self, logits: Tensor, batch: Batch) -> tuple[float, float]:
        if self.task.task == "token":
            there = batch.weight > 0
            return float((logits[there].argmax(-1) == batch.targets[there]).sum()), float(there.sum())
        assert batch.answers is not None
        if self.task.task == "choice":
            by_question = logits.reshape(self.n_questions(batch), -1)
            wanted = batch.answers.reshape(len(by_question), -1).argmax(1)
            return float((by_question.argmax(1) == wanted).sum()), float(len(wanted))
        if self.task.task in ("regression", "span"):
            return 0.0, float(len(batch.answers))
        if self.task.several:
            return float(((logits > 0) == (batch.answers > 0.5)).sum()), float(batch.answers.numel())
        return float((logits.argmax(-1) == batch.answers).sum()), float(len(batch.answers))


@dataclass(frozen=True)
class Labelled:
    """What is trained on and held out, and how the model with the task's head reads it."""

    base: Path
    tokenizer: Tokenizer
    model_config: ModelConfig
    kind: TaskKind
    reader: Reader
    training: list[Example]
    held_out: list[Example]

    def batches(self, config: FinetuneConfig) -> tuple[TaskBatches, TaskBatches]:
        """Batches to train on and to validate on. Raises ConfigError for a batch that would part a question."""
        reader, kind, rows, stride = self.reader, self.kind, config.train.rows, config.data.stride
        seed, targets = config.train.seed, targets_of(self.training, kind)
        source = batches_of(reader, kind, self.training, stride, rows, seed, targets)
        checks = batches_of(reader, kind, self.held_out, stride, rows, 0, targets_of(self.held_out, kind))
        if isinstance(source, ChoiceBatches) and rows % source.n_choices:
            raise ConfigError(f"train.rows: expected a multiple of the {source.n_choices} choices, got {rows}")
        return source, checks


def opened(config: FinetuneConfig) -> Labelled:
    """Base, rows and how they are read, what virtual tokens leave of the context. Raises ConfigError and DataError."""
    check_named(config)
    base = find_model(config.model.path)
    tokenizer = Tokenizer.load(base)
    training, held_out = rows_of(config)
    kind = kind_from(config, training, held_out)
    model_config = tasked(read_config(base)[1], kind)
    reader = reader_of(model_config, tokenizer, config.data.max_tokens, kind, config.tune.virtual)
    return Labelled(base, tokenizer, model_config, kind, reader, training, held_out)


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Tune, or go on tuning, and publish `run.dir`/model. Gives the figures of the run, and `scores` of the published
    folder on the held-out rows, each with n and an interval; its answers are run.dir/predictions.jsonl."""
    if config.task == "text2text":
        return text2text(config)
    rows = opened(config)
    base, tokenizer, kind, reader = rows.base, rows.tokenizer, rows.kind, rows.reader
    digest, seed = data_digest(config, base, tokenizer), config.train.seed

    def with_head(model: Transformer) -> Transformer:
        return tasked_model(model, kind, seed)

    adapter = tuned_by(config.tune, base, seed, tokenizer)
    adapter = None if adapter is None else replace(adapter, prepare=with_head)

    def first() -> Transformer:
        return with_head(load_model(base)) if adapter is None else adapter.begin(base)

    def make(model: Transformer) -> TaskRecipe:
        source, checks = rows.batches(config)
        cut = getattr(source, "n_cut", 0)
        say(
            f"{len(rows.training):,} rows to train on ({source.rows_per_epoch:,} an epoch"
            f"{f', {cut:,} cut at {reader.max_tokens} tokens' if cut else ''}), {len(rows.held_out):,} held out"
        )
        weights = balanced(rows.training, kind) if config.class_weights == "balanced" else None
        parents = {"base": artefact_digest(base)}
        return TaskRecipe(model, tokenizer, source, EveryRow(checks), digest, parents, task=kind, label_weights=weights)

    def scores() -> dict[str, Any]:
        return {"scores": scored(config, rows.held_out)}

    return run_tuned(config, rows.model_config, digest, first, adapter, make, scores)


def kind_from(config: FinetuneConfig, training: list[Example], held_out: list[Example]) -> TaskKind:
    """The task and its labels, by the training rows. Raises DataError for a held-out row of another label."""
    if config.task in ("sequence", "token"):
        names = label_names(training, config.data.labels, config.task)
        label_names(held_out, names, config.task)
        several = any(isinstance(e, TextExample) and isinstance(e.answer, tuple) for e in (*training, *held_out))
        return TaskKind(config.task, names, several)
    if config.class_weights != "none":
        raise ConfigError(f"class_weights: expected none for the task {config.task}, which has no classes")
    return TaskKind(config.task)


def tasked(config: ModelConfig, kind: TaskKind) -> ModelConfig:
    """The config of the model with the task's head."""
    return task_config(config, kind.head, *head_of(kind))


def head_of(kind: TaskKind) -> tuple[int | tuple[str, ...], str]:
    """Labels and problem of the head, as `retask` takes them."""
    if kind.task == "regression":
        return 1, "regression"
    problem = (
        ""
        if kind.task != "sequence"
        else "multi_label_classification"
        if kind.several
        else "single_label_classification"
    )
    return (kind.names or 2), problem


def tasked_model(model: Transformer, kind: TaskKind, seed: int) -> Transformer:
    """`model` with the task's head: its own, where it has one of these labels, else a fresh one."""
    wanted = tasked(model.config, kind)
    own = {head.name: head for head in model.config.heads}
    if model.config.heads == wanted.heads and own[kind.head].label_names == wanted.heads[0].label_names:
        return model
    return retask(model, kind.head, *head_of(kind), seed=seed)


def targets_of(examples: Sequence[Example], kind: TaskKind) -> Tensor | None:
    """Answers of the rows of a sequence or a regression: int64 [N], float32 [N], or float32 [N, L] of several."""
    if kind.task == "regression":
        return torch.tensor([float(e.answer) for e in examples], dtype=torch.float32)  # type: ignore[union-attr,arg-type]
    if kind.task != "sequence":
        return None
    number = {name: place for place, name in enumerate(kind.names)}
    if not kind.several:
        return torch.tensor([number[str(e.answer)] for e in examples])  # type: ignore[union-attr]
    found = torch.zeros(len(examples), len(kind.names))
    for row, example in enumerate(examples):
        answer = example.answer  # type: ignore[union-attr]
        for name in answer if isinstance(answer, tuple) else (str(answer),):
            found[row, number[name]] = 1.0
    return found


def balanced(examples: Sequence[Example], kind: TaskKind) -> Tensor:
    """rows / (labels · rows of the label), float32 [L]. Raises ConfigError for several labels a row."""
    if kind.several:
        raise ConfigError("class_weights: expected none where a row has several labels, got balanced")
    counts: Counter[str] = Counter()
    for example in examples:
        if isinstance(example, WordsExample):
            counts.update(example.tags or ())
        elif isinstance(example, TextExample):
            counts[str(example.answer)] += 1
    total = sum(counts.values())
    return torch.tensor([total / (len(kind.names) * counts[name]) if counts[name] else 0.0 for name in kind.names])


def scored(config: FinetuneConfig, held_out: Sequence[Example]) -> dict[str, Any]:
    """The scores of the published folder on the held-out rows; its answers are written beside it."""
    folder = Path(config.run.dir) / "model"
    model, tokenizer = load_served(folder).eval(), served_tokenizer(folder)
    kind = kind_of(model.config)
    reader = reader_of(model.config, tokenizer, config.data.max_tokens, kind, n_virtual(model))
    found = answers(model, kind, batches_of(reader, kind, held_out, config.data.stride))
    lines = [json.dumps(one, ensure_ascii=False) for one in found]
    write_text_durably(Path(config.run.dir) / PREDICTIONS, "\n".join(lines) + "\n")
    return {name: score.as_dict() for name, score in scores_of(kind, found, held_out).items()}


def scores_of(kind: TaskKind, found: Sequence[dict[str, Any]], examples: Sequence[Any]) -> dict[str, Score]:
    """Scores of answers beside the right ones."""
    if kind.task == "regression":
        return number_scores([one["score"] for one in found], [e.answer for e in examples])
    if kind.task == "token":
        return entity_scores([one["tags"] for one in found], [e.tags for e in examples])
    if kind.task == "span":
        return span_scores([one["answer"] for one in found], [[text for text, _ in e.answers] for e in examples])
    if kind.task == "choice":
        n = len(examples[0].choices)
        scores = label_scores([one["answer"] for one in found], [e.answer for e in examples], n)
        return {"accuracy": scores["accuracy"]}
    number = {name: place for place, name in enumerate(kind.names)}
    if not kind.several:
        return label_scores(
            [number[one["label"]] for one in found], [number[str(e.answer)] for e in examples], len(number)
        )
    pairs = [(name in one["labels"], name in (e.answer if isinstance(e.answer, tuple) else (e.answer,)))
             for one, e in zip(found, examples, strict=True) for name in kind.names]  # fmt: skip
    return label_scores([int(mine) for mine, _ in pairs], [int(right) for _, right in pairs], 2)
