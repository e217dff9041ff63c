"""`fledge predict`: what a task head answers, by the same pass and the same reading of it as in training's validation;
and what an encoder-decoder writes.

B rows, T tokens of a row, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledge.data.task_batches import ChoiceBatches, SpanBatches, TaskBatches, TextBatches, WordBatches
from fledge.data.task_config import Task, TaskDataConfig
from fledge.data.task_framing import Reader
from fledge.data.task_rows import Example, PairExample, TextExample, WordsExample, read_examples
from fledge.engine.config import EngineConfig, PredictConfig
from fledge.engine.load import load_engine
from fledge.engine.reading import SpanSearch, labelled, shares_of, word_tags
from fledge.engine.writing import written
from fledge.errors import ConfigError
from fledge.model.config import HeadConfig, ModelConfig
from fledge.model.folder import read_config
from fledge.model.transformer import Transformer
from fledge.nn.config import Longformer
from fledge.text.sides import Sides
from fledge.text.tokenizer import Tokenizer
from fledge.tune.folder import adapter_folder, base_folder
from fledge.tune.load import find_served, load_served, served_tokenizer

TASK_HEADS = ("sequence", "token", "span", "choice")
BATCH_ROWS = 32
SEVERAL = "multi_label_classification"


@dataclass(frozen=True)
class TaskKind:
    """A task with its head's labels: `names` in order; `several`: each label holds or not, by itself."""

    task: Task
    names: tuple[str, ...] = ()
    several: bool = False

    @property
    def head(self) -> str:
        """The head's name on the model."""
        return "sequence" if self.task == "regression" else self.task


def predict(config: PredictConfig, json: bool = False) -> dict[str, Any]:
    """The head's answer to a text, or to each row of a file, or what an encoder-decoder writes for it: printed, and as
    `answers` of the result.

    Raises ConfigError for a model without a task head or a text that fits no task, DataError for a file.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    base = find_served(config.model)
    if writes(read_config(base if adapter_folder(base) is None else base_folder(base))[1]):
        return predict_texts(config, json)
    tokenizer, model = served_tokenizer(config.model), load_served(config.model).eval()
    kind = kind_of(model.config)
    examples = asked(config, kind)
    reader = reader_of(model.config, tokenizer, config.max_tokens, kind, n_virtual(model))
    found = answers(model, kind, batches_of(reader, kind, examples, config.stride))
    if not json:
        for one in found:
            print(shown(one))
    return {"model": config.model, "task": kind.task, "labels": list(kind.names), "answers": found}


def writes(config: ModelConfig) -> bool:
    """Whether the model writes a text for a text: an encoder-decoder with an output over the vocabulary."""
    return config.encoder is not None and config.decoder is not None and config.lm and not config.heads


def predict_texts(config: PredictConfig, json: bool) -> dict[str, Any]:
    """What an encoder-decoder writes for a text, or for each source of a file, by the likeliest tokens or by beams: as
    `fledge finetune` scores it."""
    engine = load_engine(config.model, EngineConfig(n_slots=max(8, config.beams), threads=config.threads))
    context = engine.runner.source_tokens
    if config.max_tokens > context:
        raise ConfigError(f"max_tokens: expected at most the context of {context}, got {config.max_tokens}")
    examples = asked(config, TaskKind("text2text"))
    texts = [one.source for one in examples if isinstance(one, PairExample)]
    sides = Sides(engine.tokenizer, config.max_tokens or context, context, config.prefix)
    found = written(engine, sides.sources(texts), config.answer_tokens, config.beams, config.length_penalty)
    if not json:
        print("\n".join(found))
    return {"model": config.model, "task": "text2text", "labels": [], "answers": [{"target": text} for text in found]}


def asked(config: PredictConfig, kind: TaskKind) -> list[Example]:
    """What is to be answered; tags that a file has are left out, whatever they are. Raises ConfigError unless it is a
    text or a file."""
    if (config.text is None) == (config.file is None):
        raise ConfigError('text: expected a text or --file, got both or neither; write fledge predict MODEL "text"')
    if config.file is not None:
        columns = TaskDataConfig(text=config.column, pair=config.pair_column, header=config.header)
        found = read_examples(config.file, kind.task, columns, answered=False)
        return [replace(one, tags=None) if isinstance(one, WordsExample) else one for one in found]
    assert config.text is not None
    if kind.task == "text2text":
        return [PairExample("text", config.text, None)]
    if kind.task not in ("sequence", "regression"):
        raise ConfigError(f"text: expected a file of rows for the task {kind.task}, got a text; use --file")
    return [TextExample("text", config.text, config.pair, None)]


def kind_of(config: ModelConfig) -> TaskKind:
    """The task of a model with one task head. Raises ConfigError for a model without."""
    head = next((head for head in config.heads if head.name in TASK_HEADS), None)
    if head is None:
        raise ConfigError(
            f"model: expected a task head ({', '.join(TASK_HEADS)}), got {config.family} with "
            f"{', '.join(one.name for one in config.heads) or 'none'}; tune one with fledge finetune"
        )
    if head.name == "sequence" and head.labels == 1 and head.problem != SEVERAL:
        return TaskKind("regression")
    return TaskKind(head.name, names_of(head), head.problem == SEVERAL)  # type: ignore[arg-type]


def names_of(head: HeadConfig) -> tuple[str, ...]:
    if head.name not in ("sequence", "token"):
        return ()
    return head.label_names or tuple(f"LABEL_{number}" for number in range(head.labels))


def n_virtual(model: Transformer) -> int:
    """How many virtual tokens stand before a model's rows."""
    return 0 if model.virtual is None else model.virtual.n_tokens


def reader_of(config: ModelConfig, tokenizer: Tokenizer, max_tokens: int, kind: TaskKind, virtual: int = 0) -> Reader:
    """How the model wants its texts. Raises ConfigError for rows longer than what `virtual` tokens before them leave of
    its context."""
    stack = config.encoder or config.decoder
    assert stack is not None
    room = config.context_tokens - virtual
    most = max_tokens or room
    if not 8 <= most <= room:
        less = f" less {virtual} virtual tokens" if virtual else ""
        raise ConfigError(f"max_tokens: expected 8 to the context of {config.context_tokens}{less}, got {most}")
    looks_all_over = any(isinstance(layer.pattern, Longformer) for layer in stack.layers)
    marked = looks_all_over and kind.task in ("span", "choice")
    return Reader(tokenizer, most, stack.inputs.kinds > 1 and not looks_all_over, marked)


def batches_of(
    reader: Reader,
    kind: TaskKind,
    examples: Sequence[Any],
    stride: int = 128,
    rows: int = BATCH_ROWS,
    seed: int = 0,
    targets: Tensor | None = None,
) -> TaskBatches:
    """The batches of a task's examples. `targets`: the answers of a sequence's or a regression's rows."""
    if kind.task == "token":
        return WordBatches(reader, examples, kind.names, rows, seed)
    if kind.task == "span":
        return SpanBatches(reader, examples, stride, rows, seed)
    if kind.task == "choice":
        return ChoiceBatches(reader, examples, rows, seed)
    return TextBatches(reader, examples, targets, rows, seed)


def answers(model: Transformer, kind: TaskKind, batches: TaskBatches) -> list[dict[str, Any]]:
    """An answer to each example, in order."""
    if isinstance(batches, SpanBatches):
        return span_answers(model, kind, batches)
    found: list[dict[str, Any]] = []
    was_training = model.training
    model.eval()
    for start, logits in passes(model, kind, batches):
        if isinstance(batches, ChoiceBatches):
            found += [chosen(row, batches, start + n) for n, row in enumerate(logits.reshape(-1, batches.n_choices))]
        elif isinstance(batches, WordBatches):
            found += [tagged(row, batches, kind, start + n) for n, row in enumerate(logits)]
        elif kind.task == "regression":
            found += [{"score": float(row[0])} for row in logits]
        else:
            found += [labelled(row, kind.names, kind.several) for row in logits]
    model.train(was_training)
    return found


@torch.no_grad()
def passes(model: Transformer, kind: TaskKind, batches: TaskBatches) -> Iterator[tuple[int, np.ndarray]]:
    """The head's numbers of all rows in their order, with the number of the first."""
    device = model.embedding.weight.device
    for start in range(0, batches.rows_per_epoch, BATCH_ROWS):
        batch = batches.in_order(start, start + BATCH_ROWS).to(device)
        yield start, model.head(kind.head, batch.tokens, batch.layout).float().cpu().numpy()


def tagged(logits_TL: np.ndarray, batches: WordBatches, kind: TaskKind, number: int) -> dict[str, Any]:
    """A tag for each word with its probability."""
    words = batches.examples[number].words
    found = word_tags(logits_TL, batches.firsts[number], kind.names)
    return {"tokens": list(words), "tags": [tag for tag, _ in found], "scores": [score for _, score in found]}


def chosen(logits_C: np.ndarray, batches: ChoiceBatches, number: int) -> dict[str, Any]:
    shares = shares_of(logits_C)
    best = int(logits_C.argmax())
    return {"answer": best, "text": batches.examples[number].choices[best], "probability": float(shares[best])}


def span_answers(
    model: Transformer, kind: TaskKind, batches: SpanBatches, longest: int = 30, n_best: int = 20
) -> list[dict[str, Any]]:
    """The best span of each question over its windows."""
    searches = [SpanSearch(example.context, longest, n_best) for example in batches.examples]
    was_training = model.training
    model.eval()
    for start, logits in passes(model, kind, batches):
        for window, row in zip(batches.windows[start : start + len(logits)], logits, strict=True):
            searches[window.example].see(window, row)
    model.train(was_training)
    return [{"id": example.name, **one.answer()} for example, one in zip(batches.examples, searches, strict=True)]


def shown(answer: dict[str, Any]) -> str:
    """One answer as a line."""
    if "tags" in answer:
        return " ".join(f"{word}/{tag}" for word, tag in zip(answer["tokens"], answer["tags"], strict=True))
    if "labels" in answer:
        return ", ".join(answer["labels"]) or "none"
    if "label" in answer:
        return f"{answer['label']}  {answer['probability']:.4f}"
    figure = answer["score"] if "score" in answer else answer["probability"]
    return f"{answer.get('text', answer.get('answer', ''))}  {figure:.4f}".strip()
