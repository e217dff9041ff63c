"""`data preview`: rows of training, token by token, with what is trained marked: the batches that the verb's own recipe
draws, never made a second time.

B rows, T tokens a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Literal

from fledge.batch import PADDING, Batch, Tokens
from fledge.data.keyed_batches import EveryRow
from fledge.data.mixture import Mixture
from fledge.data.preference_batches import Fitted
from fledge.data.shards import Dataset
from fledge.data.task_batches import SpanBatches, WordBatches
from fledge.engine.predict import TaskKind
from fledge.errors import ConfigError
from fledge.model.folder import build
from fledge.recipes import align, finetune
from fledge.recipes import text2text as pairs_of_texts
from fledge.recipes.config import PretrainConfig, SftConfig
from fledge.recipes.finetune_config import FinetuneConfig
from fledge.recipes.inspect import with_shape
from fledge.recipes.language import row_tokens_of
from fledge.recipes.objective import MASKED, objective_tokenizer
from fledge.recipes.preference_config import AlignConfig
from fledge.recipes.pretrain import check_config, first_config, objective_recipe, open_data, prepare_data
from fledge.recipes.preview_config import PreviewConfig
from fledge.recipes.sft import chat_batches, check_writer, conversations, opened_base
from fledge.text.chat import renderer_for, with_format
from fledge.text.tokenizer import Tokenizer

Reads = Literal["next", "same", "answer"]


@dataclass(frozen=True)
class TrainedRows:
    """What a verb trains on: `batch(index)` for any index, and `held_out` batches. `reads`: a target is the next token,
    what stands hidden at its own place (or the place's label, of `labels`), or the whole row's answer. `rules`: what
    becomes of rows that don't fit, each with the number of them."""

    tokenizer: Tokenizer
    batch: Callable[[int], Batch]
    held_out: Sequence[Batch]
    batch_rows: int
    rows_per_epoch: int | None
    reads: Reads = "next"
    labels: tuple[str, ...] = ()
    rules: tuple[tuple[str, int], ...] = ()

    def batches(self, split: str, first_row: int) -> Iterator[tuple[Batch, int]]:
        """Batches from the one with `first_row` on, and which of its rows that is (then 0)."""
        if split == "train":
            index, place = divmod(first_row, self.batch_rows)
            while True:
                yield self.batch(index), place
                index, place = index + 1, 0
        before = 0
        for batch in (self.held_out[index] for index in range(len(self.held_out))):
            if first_row < before + len(batch.targets):
                yield batch, max(0, first_row - before)
            before += len(batch.targets)

    def rows(self, split: str, first_row: int) -> Iterator[tuple[Batch, int]]:
        """Rows as batches with their places."""
        return ((batch, b) for batch, first in self.batches(split, first_row) for b in range(first, len(batch.targets)))


def preview_rows(verb: str, config: Any, asked: PreviewConfig, scratch: Path) -> dict[str, Any]:
    """The rows that `verb` trains on under its `config`: `rows` token by token, `counts` over the first `count_rows` of
    an epoch, `rules`. Shards made from raw text go to `scratch`. Raises what the verb raises before it trains, and
    ConfigError for a held-out row that isn't there."""
    found = MAKERS[verb](config, scratch)
    rows = [
        row_of(found, batch, b) | {"row": asked.first_row + n}
        for n, (batch, b) in enumerate(islice(found.rows(asked.split, asked.first_row), asked.rows))
    ]
    if asked.rows and not rows:
        raise ConfigError(f"first_row: expected one of the rows of split {asked.split}, got {asked.first_row}")
    most = asked.count_rows
    if asked.split == "train" and found.rows_per_epoch:
        most = min(most, found.rows_per_epoch)
    return {
        "verb": verb,
        "split": asked.split,
        "trained": {"next": "tokens", "same": "hidden tokens or labels", "answer": "the answer of a row"}[found.reads],
        "rows_per_epoch": found.rows_per_epoch if asked.split == "train" else None,
        "counts": counts(found, islice(found.rows(asked.split, 0), most)),
        "rules": [{"rule": rule, "n": n} for rule, n in found.rules],
        "rows": rows,
    }


def counts(found: TrainedRows, rows: Iterator[tuple[Batch, int]]) -> dict[str, Any]:
    """Of these rows: documents, tokens (of sources too), padding, trained ones, and their share of all tokens."""
    n = dict.fromkeys(("rows", "documents", "tokens", "source_tokens", "padding", "trained"), 0)
    for batch, b in rows:
        documents = batch.tokens.doc[b].tolist()
        n["rows"] += 1
        n["documents"] += sum(document != PADDING for document, _ in groupby(documents))
        n["tokens"] += sum(document != PADDING for document in documents)
        n["padding"] += documents.count(PADDING)
        n["trained"] += 0 if found.reads == "answer" else int((batch.weight[b] > 0).sum())
        if batch.source is not None:
            n["source_tokens"] += int((batch.source[0].doc[b] != PADDING).sum())
    return n | {"trained_share": n["trained"] / n["tokens"] if n["tokens"] else 0.0}


def row_of(found: TrainedRows, batch: Batch, b: int) -> dict[str, Any]:
    """Row `b` of a batch: its parts (of an encoder-decoder source and target), each as documents."""
    target = part(found, batch.tokens, batch, b)
    parts = {"": target}
    if batch.source is not None:
        parts = {"source": part(found, batch.source[0], None, b), "target": target}
    row: dict[str, Any] = {"from": batch.sample_ids[b], "parts": parts}
    if batch.answers is not None:
        row["answer"] = answer_of(found, batch.answers[b].tolist())
    return row


def part(found: TrainedRows, tokens: Tokens, batch: Batch | None, b: int) -> dict[str, Any]:
    """Documents in their order, each with `ids`, `pieces` and `weights`: how much each of its tokens counts as a target
    (0: read, not trained). `padding`: places left over. Without a batch nothing is trained."""
    ids, documents = tokens.ids[b].tolist(), tokens.doc[b].tolist()
    shown, at = [], 0
    for document, run in groupby(documents):
        n = len(list(run))
        if document != PADDING:
            places = slice(at, at + n)
            shown.append(document_of(found, ids[places], batch, b, places) | {"document": document})
        at += n
    return {"documents": shown, "padding": documents.count(PADDING)}


def document_of(found: TrainedRows, ids: list[int], batch: Batch | None, b: int, places: slice) -> dict[str, Any]:
    weights, targets = [0.0] * len(ids), list(ids)
    if batch is not None and found.reads != "answer":
        targets, weights = batch.targets[b, places].tolist(), batch.weight[b, places].tolist()
    if batch is not None and found.reads == "next":
        last = [targets[-1]] if weights[-1] > 0 else []  # of no place of its own: nothing is read after it
        ids, weights = ids + last, [0.0, *weights][: len(ids) + len(last)]
    row: dict[str, Any] = {"ids": ids, "pieces": [piece(found.tokenizer, number) for number in ids], "weights": weights}
    if batch is not None and found.reads == "same":
        told = [found.labels[t] if found.labels else piece(found.tokenizer, t) for t in targets]
        row["targets"] = [text if weight > 0 else None for text, weight in zip(told, weights, strict=True)]
    return row


def piece(tokenizer: Tokenizer, number: int) -> str:
    """A token as text: a special one by its name, bytes that are no whole character as \\xNN."""
    if tokenizer.is_special(number):
        return tokenizer.token_of(number)
    data = tokenizer.token_bytes(number)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)


def answer_of(found: TrainedRows, answer: Any) -> Any:
    """A label by its name, several by theirs; numbers and places as they are."""
    if not found.labels:
        return answer
    if isinstance(answer, list):
        return [name for name, holds in zip(found.labels, answer, strict=True) if holds > 0.5]
    return found.labels[answer]


# What each verb trains on


def pretrain_rows(config: PretrainConfig, scratch: Path) -> TrainedRows:
    config = with_shape(config)
    check_config(config, scratch)
    prepare_data(config, scratch)
    data = open_data(config, scratch)
    tokenizer = objective_tokenizer(config, data.tokenizer)
    model_config = first_config(config, tokenizer)
    row_tokens = row_tokens_of(config.train, model_config.context_tokens)
    recipe = objective_recipe(config, data, tokenizer, build(model_config, "meta"), row_tokens)
    held_out = recipe.held_out
    if isinstance(data, Mixture):
        held_out = list(chain.from_iterable(source.batches for source in recipe.sources))
    return TrainedRows(
        tokenizer, recipe.batch, held_out, config.train.rows, getattr(recipe.source, "rows_per_epoch", None),
        "same" if config.objective in MASKED else "next", rules=(long_documents(data, row_tokens),),
    )  # fmt: skip


def long_documents(data: Dataset | Mixture, row_tokens: int) -> tuple[str, int]:
    sources = [one.dataset for one in data.sources] if isinstance(data, Mixture) else [data]
    long = 0
    for one in sources:
        starts = one.train.starts.tolist()
        long += sum(b - a > row_tokens for a, b in zip(starts, [*starts[1:], one.train.n_tokens], strict=True))
    return f"documents longer than a row of {row_tokens} tokens, which go on in another row", long


def sft_rows(config: SftConfig, scratch: Path) -> TrainedRows:
    base, base_config = opened_base(config, "conversations", config.tune.method != "full")
    check_writer(base_config, base)
    renderer = renderer_for(with_format(Tokenizer.load(base), config.chat.format))
    training, held_out = conversations(config)
    row_tokens = row_tokens_of(config.train, base_config.context_tokens - config.tune.virtual)
    source, checks = chat_batches(config, renderer, training, held_out, row_tokens)
    rules = (
        (f"conversations longer than a row, cut at their end to {row_tokens + 1} tokens", source.n_cut),
        ("conversations left out, without a token to learn in what fits", source.n_left_out),
    )
    return TrainedRows(renderer.tokenizer, source.batch, checks, config.train.rows, source.rows_per_epoch, rules=rules)


def preference_rows(config: AlignConfig, scratch: Path) -> TrainedRows:
    base, base_config = opened_base(config, "preferences")
    renderer = renderer_for(with_format(Tokenizer.load(base), config.chat.format))
    row_tokens = row_tokens_of(config.train, base_config.context_tokens)
    items = align.reader_of(config)(config.data, renderer, row_tokens + 1)
    source, checks = align.preference_batches(config, items, renderer.tokenizer)
    return TrainedRows(
        renderer.tokenizer, source.batch, EveryRow(checks), config.train.rows, source.rows_per_epoch,
        rules=preference_rules(items.fates[0], row_tokens + 1),
    )  # fmt: skip


def preference_rules(fate: Fitted, most_tokens: int) -> tuple[tuple[str, int], ...]:
    return (
        (f"rows with an answer cut at its end to {most_tokens} tokens", fate.n_cut),
        (f"rows left out, too long for {most_tokens} tokens", fate.n_too_long),
        ("rows left out, the same answer twice", fate.n_same),
    )


def finetune_rows(config: FinetuneConfig, scratch: Path) -> TrainedRows:
    if config.task == "text2text":
        return text2text_rows(config)
    labelled = finetune.opened(config)
    kind = labelled.kind
    source, checks = labelled.batches(config)
    most, cut = labelled.reader.max_tokens, getattr(source, "n_cut", 0)
    rule = (f"rows of {most} tokens, whose text was cut or just fits", cut)
    if isinstance(source, WordBatches):
        rule = (f"words without a tagged token in {most} tokens", cut)
    elif isinstance(source, SpanBatches):
        rule = (f"windows of {most} tokens beyond the first of a context", len(source.windows) - len(source.examples))
    return TrainedRows(
        labelled.tokenizer, source.batch, EveryRow(checks), config.train.rows, source.rows_per_epoch,
        "same" if kind.task == "token" else "answer", labels_of(kind), (rule,),
    )  # fmt: skip


def text2text_rows(config: FinetuneConfig) -> TrainedRows:
    pairs = pairs_of_texts.opened(config)
    source, checks = pairs.batches(config)
    sides = (("sources", pairs.sides.source_tokens), ("targets", pairs.sides.target_tokens))
    rules = tuple(
        (f"{name} of {most} tokens, whose text was cut or just fits", n)
        for (name, most), n in zip(sides, source.n_cut, strict=True)
    )
    return TrainedRows(
        pairs.sides.tokenizer, source.batch, EveryRow(checks), config.train.rows, source.rows_per_epoch, rules=rules
    )


def labels_of(kind: TaskKind) -> tuple[str, ...]:
    """Names of what `answers` or targets count."""
    return ("wrong", "right") if kind.task == "choice" else kind.names


MAKERS: dict[str, Callable[[Any, Path], TrainedRows]] = {
    "pretrain": pretrain_rows, "sft": sft_rows, "finetune": finetune_rows, "align dpo": preference_rows,
}  # fmt: skip
