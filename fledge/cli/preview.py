"""`fledge data preview`: which verb trains on what was named, under which config; then its rows, shown."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from fledge import config as configs
from fledge.cli.main import named
from fledge.cli.parse import Parser, find_verb
from fledge.data.task_config import TaskDataConfig
from fledge.data.task_rows import file_text, rows_of
from fledge.errors import ConfigError, DataError
from fledge.lineage import check_output_file, make_folder, write_text_durably
from fledge.recipes.preview_config import PreviewConfig
from fledge.text.conversation import read_rows

VERBS = ("pretrain", "sft", "finetune", "align dpo")
TASKS = (
    ("source", "text2text"),
    ("target", "text2text"),
    ("choices", "choice"),
    ("endings", "choice"),
    ("context", "span"),
    ("tokens", "token"),
    ("words", "token"),
)
"""Keys of a row that tell the task of `finetune`, tried in this order."""
TABLES, WORDS = (".tsv", ".csv"), (".conll", ".conllu")


def preview(config: PreviewConfig, json: bool = False) -> dict[str, Any]:
    """Rows of training: printed unless `json`, and as a page where one is asked for. Raises what the verb raises before
    it trains: a wrong row by its file and line."""
    verb, training = training_config(config)
    from fledge.recipes.preview import preview_rows
    from fledge.recipes.preview_page import page
    from fledge.recipes.preview_text import colours, text

    if config.html is not None:
        check_output_file(config.html)
    with tempfile.TemporaryDirectory() as scratch:
        result = {"path": config.path, **preview_rows(verb, training, config, Path(scratch))}
    if config.html is not None:
        make_folder(config.html.parent)
        write_text_durably(config.html, page(result))
        result["html"] = str(config.html)
    if not json:
        print(text(result, config.ids, config.tokens, colours(sys.stdout)))
    return result


def training_config(config: PreviewConfig) -> tuple[str, Any]:
    """The training verb and its config. Raises ConfigError where several fit, and the verb's own for wrong keys."""
    file = file_of(config.path)
    found: dict[str, Any] = {}
    errors: dict[str, ConfigError] = {}
    for name in (config.verb,) if config.verb else VERBS:
        try:
            found[name] = read(name, config, file)
        except ConfigError as error:
            errors[name] = error
    if found and (config.verb or (file is not None and len(found) == 1)):
        return found.popitem()
    if config.verb:
        raise errors[config.verb]
    path = config.path
    if file is not None:
        trees = [configs.to_dict(one) for one in found.values()] or [configs.read_yaml(file)]
        path = str((trees[0].get("data") or {}).get("path") or "")
    likely = verb_of(path) if path else None
    if likely in found:
        return likely, found[likely]
    if likely is not None and likely in errors:
        raise errors[likely]
    raise ConfigError(f"verb: expected one of {', '.join(VERBS)} to go with {config.path}; set --verb")


def file_of(path: str) -> Path | None:
    """The YAML file that is meant: itself, or run.yaml of a run folder; None for data."""
    run = Path(path) / "run.yaml"
    return Path(path) if path.endswith((".yaml", ".yml")) else run if run.is_file() else None


def read(name: str, config: PreviewConfig, file: Path | None) -> Any:
    """The config of verb `name`: the file's keys, or the data as its data.path, and over them those that were typed."""
    verb, _ = find_verb(name.split())
    cls = named(verb.config)
    tree: dict[str, Any] = {"data": {"path": config.path}}
    if file is not None:
        tree = configs.read_yaml(file)
    elif name == "finetune":
        tree["task"] = task_of(config.path)
    configs.merge(tree, Parser(verb, cls).parse(list(config.changes)).tree)
    return configs.from_dict(cls, tree, at=str(file or ""))


def verb_of(path: str) -> str:
    """Which verb trains on data like this, by its first row; text and folders are pre-trained on."""
    row = first_row(path)
    if row is None:
        return "finetune" if path.removesuffix(".gz").endswith(WORDS) else "pretrain"
    if {"chosen", "rejected"} <= set(row) or ("label" in row and isinstance(row["label"], bool) and "prompt" in row):
        return "align dpo"
    answered = any({"prompt", answer} <= set(row) for answer in ("response", "completion"))
    return "sft" if answered or any(key in row for key in ("messages", "conversations", "instruction")) else "finetune"


def task_of(path: str) -> str:
    """The task of labelled rows, by the keys of the first or by the file's name; `sequence` where they tell none."""
    if path.removesuffix(".gz").endswith(WORDS):
        return "token"
    row = first_row(path) or {}
    return next((task for key, task in TASKS if key in row), "sequence")


def first_row(path: str) -> dict[str, Any] | None:
    """The first row of JSON or of a table; None for other files. Raises DataError for a first row that is none."""
    plain = path.removesuffix(".gz").removesuffix(".zst")
    if not plain.endswith((".jsonl", ".json", *TABLES)):
        return None
    if not Path(path).is_file():
        raise DataError(f"{path}: expected a file, found none; check the path")
    if not plain.endswith(".jsonl") and not path.endswith(".zst"):  # SQuAD's nesting too
        row, at = next(rows_of(file_text(Path(path)), Path(path), TaskDataConfig()), ({}, path))
    else:
        row, at = next(read_rows(Path(path)), ({}, path))
    if not isinstance(row, dict):
        raise DataError(f"{at}: expected an object, got {type(row).__name__}")
    return row
