"""`data inspect`: what is in a dataset or a source, and a row of training as a model sees it: the very batch that
pretrain would draw, made by the recipe of its objective."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from fledge.batch import GLOBAL, PADDING, Batch, Tokens
from fledge.data.corpus import read_corpus, read_records
from fledge.data.shards import KIND, Dataset, open_shards
from fledge.data.sources import gather
from fledge.data.stats import card_of, shown
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.folder import build
from fledge.recipes.config import InspectConfig, PretrainConfig
from fledge.recipes.language import row_tokens_of
from fledge.recipes.objective import MASKED, objective_tokenizer
from fledge.recipes.pretrain import first_config, objective_recipe
from fledge.text.documents import Tally
from fledge.text.tokenizer import Tokenizer

FITTING = {"spans": "t5", "denoise": "bart", **dict.fromkeys(MASKED, "bert")}  # families for objectives
ROW_TOKENS = 128
Pretraining = TypeVar("Pretraining", bound=PretrainConfig)


def inspect_data(config: InspectConfig, json: bool = False) -> dict[str, Any]:
    """The first documents of a folder or source; of a dataset also row `row`, token by token: its piece, position,
    document, target and weight. Prints both unless `json`. Raises ConfigError for a row that isn't there."""
    if not config.path:
        raise ConfigError("path: expected a folder or a source, got none; fledge data inspect PATH")
    card = card_of(config.path)
    if card is None:
        result = of_source(config)
    else:
        found = islice(read_corpus(config.path, config.split), config.documents)
        texts = {document.path: document.text for document in found}
        result = {"path": config.path, "kind": card["kind"], "digest": card["digest"], "documents": []}
        records = (record for record in read_records(config.path) if record.split == config.split)
        for record in islice(records, len(texts)):
            row = {"document": record.path, "bytes": record.bytes, "tokens": record.tokens}
            result["documents"].append({**row, "begins": texts[record.path][: config.characters]})
        if card["kind"] == KIND:
            result["row"] = row_of(config, open_shards(config.path))
    if not json:
        print(page(result, config.tokens))
    return result


def of_source(config: InspectConfig) -> dict[str, Any]:
    tally = Tally()
    documents = [
        {"document": document.path, "bytes": document.n_bytes, "begins": document.text[: config.characters]}
        for document in islice(gather(config.path, tally, config.reading), config.documents)
    ]
    bad = [str(row) for row in tally.bad.first]
    return {"path": config.path, "kind": "source", "documents": documents, "bad_rows_so_far": bad}


def row_of(config: InspectConfig, dataset: Dataset) -> dict[str, Any]:
    """Row `config.row` of training, or of validation, under the config's objective."""
    config = with_shape(config)
    tokenizer = objective_tokenizer(config, dataset.tokenizer)
    model_config = first_config(config, tokenizer)
    row_tokens = row_tokens_of(config.train, model_config.context_tokens)
    recipe = objective_recipe(config, dataset, tokenizer, build(model_config, "meta"), row_tokens)
    if config.split == "train":
        batch, place = recipe.batch(config.row // config.train.rows), config.row % config.train.rows
    else:
        batch, place = held_out_row(recipe.held_out, config.row)
    parts = {"": part(batch.tokens, place, tokenizer, batch)}
    if batch.source is not None:
        parts = {"source": part(batch.source[0], place, tokenizer), "target": parts[""]}
    found = {"objective": config.objective, "row": config.row, "from": batch.sample_ids[place], "parts": parts}
    return found | ({"answer": int(batch.answers[place])} if batch.answers is not None else {})


def with_shape(config: Pretraining) -> Pretraining:
    """The config, of a small model that the objective can train where it names none, whose numbers decide nothing about
    a row but its length."""
    shape = config.model
    if shape.width or shape.preset or config.init_from:
        return config
    family = FITTING.get(config.objective, shape.family) if shape.family == ShapeConfig().family else shape.family
    context = shape.context_tokens or max(config.train.row_tokens, ROW_TOKENS)
    shape = replace(shape, family=family, width=64, layers=1, heads=2, context_tokens=context)
    return replace(config, model=shape)


def held_out_row(held_out: Any, row: int) -> tuple[Batch, int]:
    """The validation batch that holds a row, and its place there. Raises ConfigError beyond the last."""
    before = 0
    for index in range(len(held_out)):
        batch = held_out[index]
        if row < before + len(batch.targets):
            return batch, row - before
        before += len(batch.targets)
    raise ConfigError(f"row: expected 0..{before - 1} of the validation's rows, got {row}")


def part(tokens: Tokens, place: int, tokenizer: Tokenizer, batch: Batch | None = None) -> dict[str, Any]:
    """One row as columns: ids, pieces, positions, documents (-1: padding); of what is trained, targets and weights."""
    ids = tokens.ids[place].tolist()
    found: dict[str, Any] = {
        "ids": ids,
        "pieces": [shown(tokenizer, number) for number in ids],
        "positions": tokens.pos[place].tolist(),
        "documents": tokens.doc[place].tolist(),
    }
    if tokens.kind is not None:
        found["kinds"] = tokens.kind[place].tolist()
    if batch is not None:
        targets = batch.targets[place].tolist()
        found |= {"targets": targets, "target_pieces": [shown(tokenizer, number) for number in targets]}
        found["weights"] = batch.weight[place].tolist()
    return found


def page(result: dict[str, Any], most: int) -> str:
    """What is printed for people."""
    lines = [f"{result['path']}: {result['kind']} {result.get('digest', '')[:12]}".rstrip()]
    for document in result["documents"]:
        tokens = f", {document['tokens']:,} tokens" if document.get("tokens") is not None else ""
        lines += ["", f"{document['document']}  ({document['bytes']:,} bytes{tokens})"]
        lines += [f"  {line}" for line in document["begins"].splitlines()]
    lines += [f"bad row: {row}" for row in result.get("bad_rows_so_far", [])]
    row = result.get("row")
    if row is not None:
        answer = f", answer {row['answer']}" if "answer" in row else ""
        lines += ["", f"row {row['row']} of objective {row['objective']}, from {row['from']}{answer}"]
        for name, columns in row["parts"].items():
            lines += ([f"{name}:"] if name else []) + token_lines(columns, most)
    return "\n".join(lines)


def token_lines(columns: dict[str, Any], most: int) -> list[str]:
    """A line a token: position, document, id, piece, and the target where it is trained on. A line between two
    documents."""
    lines = [f"{'pos':>6} {'doc':>4} {'id':>7}  {'piece':<24} {'weight':>6}  target"]
    kinds = columns.get("kinds")
    for n in range(min(most, len(columns["ids"]))):
        doc = columns["documents"][n]
        if n and doc != columns["documents"][n - 1]:
            lines.append("       ---- padding" if doc == PADDING else "       ---- another document")
        line = f"{columns['positions'][n]:>6} {doc:>4} {columns['ids'][n]:>7}  {columns['pieces'][n]:<24}"
        if "weights" in columns:
            weight = columns["weights"][n]
            line += f" {weight:>6g}  {columns['target_pieces'][n] if weight else ''}"
        line += "  (seen by all)" if kinds is not None and kinds[n] == GLOBAL else ""
        lines.append(line.rstrip())
    left = len(columns["ids"]) - most
    return lines + ([f"… {left} more tokens"] if left > 0 else [])
