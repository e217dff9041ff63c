"""A task head that is trained whole beside an adapter: PEFT's modules to save, and `head.json`, which tells the head.

PEFT keeps no labels and leaves the head's class to whoever loads the base; `head.json` has both, so that a folder is
enough to answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.config import read_json
from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import PROBLEMS
from fledge.model.folder import put_parameter, weights_in_files, write_json
from fledge.model.names import Weight, their_shape, to_ours, to_theirs
from fledge.model.retask import retask
from fledge.model.transformer import Transformer
from fledge.nn.config import MAX_WIDTH
from fledge.tune.base import HEAD

MAX_BYTES = 16 << 20
TASKS = ("sequence", "token", "span", "choice")
PREFIX = "base_model.model."
SAVED = ("classifier", "score", "qa_outputs")  # what PEFT names for every model, whether it has such a module or not
PREFIX_OF_VIRTUAL = "base_model."  # PEFT wraps no modules for virtual tokens


def train_heads(model: Transformer) -> Transformer:
    """`model`, whose task heads are trained too. Raises ConfigError for one without."""
    if not model.heads:
        raise ConfigError("tune: expected a task head to train beside the adapter, got a model without one")
    model.heads.requires_grad_(True)
    return model


def heads_are_trained(model: Transformer) -> bool:
    """Whether a task head's own weights are trained (a value head is no task's, and kept elsewhere)."""
    tasks = any(head.name in TASKS for head in model.config.heads)
    return tasks and all(parameter.requires_grad for parameter in model.heads.parameters())


def head_rows(model: Transformer) -> dict[str, Weight]:
    """The heads' tensors by their names in files."""
    rows = weights_in_files(model.config).items()
    return {name: row for name, row in rows if row.ours and all(one.startswith("heads.") for one in row.ours)}


def head_modules(model: Transformer) -> list[str]:
    """The heads' modules as transformers calls them: what PEFT saves whole."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in head_rows(model)))


@torch.no_grad()
def head_tensors(model: Transformer) -> dict[str, Tensor]:
    """The heads' weights by their names in an adapter's file."""
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {prefix_of(model) + name: to_theirs(row, ours) for name, row in head_rows(model).items()}


def prefix_of(model: Transformer) -> str:
    """What stands before the base's names in an adapter's file."""
    return PREFIX if model.virtual is None else PREFIX_OF_VIRTUAL


def without_head(
    model: Transformer, tensors: Mapping[str, Tensor], prefix: str = PREFIX
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's tensors: those of adapters, and those of the model's heads, by their names in files."""
    known = {prefix + name: name for name in head_rows(model)}
    head = {known[name]: tensor for name, tensor in tensors.items() if name in known}
    return {name: tensor for name, tensor in tensors.items() if name not in known}, head


def fill_heads(model: Transformer, head: Mapping[str, Tensor], whole: bool = True) -> Transformer:
    """Give the heads their values: all, unless `whole` is false. Raises CheckpointError for some of all, other shapes,
    or values that are not finite numbers."""
    rows = head_rows(model)
    if whole and head.keys() != rows.keys():
        name = min(head.keys() ^ rows.keys())
        raise CheckpointError(f"adapter: {name[:80]}: expected all tensors of the task head, got some; save it again")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, tensor in head.items():
        if not tensor.is_floating_point() or not math.isfinite(float(tensor.float().abs().sum())):
            raise CheckpointError(f"adapter: {name[:80]}: expected finite floating-point numbers, got others")
        wanted = their_shape(rows[name], shapes)
        if tuple(tensor.shape) != tuple(wanted):
            raise CheckpointError(
                f"adapter: {name[:80]}: expected {list(wanted)}, got {list(tensor.shape)}; it is of another head"
            )
        for own, value in to_ours(rows[name], tensor, shapes).items():
            old = model.get_parameter(own)
            put_parameter(model, own, value.to(old))
            model.get_parameter(own).requires_grad_(old.requires_grad)
    return model


def write_head(model: Transformer, folder: Path) -> None:
    """Tell the head in the adapter's folder: task, labels, problem."""
    head = next(one for one in model.config.heads if one.name in TASKS)
    facts = {"task": head.name, "labels": list(head.label_names) or head.labels, "problem": head.problem}
    write_json(folder / HEAD, facts)


def with_head_of(model: Transformer, folder: Path) -> Transformer:
    """The base with the head that an adapter's folder tells of, without its values; the base where it tells of none.
    Raises ConfigError for a head that is none."""
    if not (folder / HEAD).is_file():
        return model
    raw = read_json(folder / HEAD, MAX_BYTES, unique=True)
    task, labels, problem = checked(raw if isinstance(raw, dict) else {})
    return retask(model, task, labels, problem)


def checked(raw: dict[str, Any]) -> tuple[str, int | tuple[str, ...], str]:
    """Task, labels and problem of a file. Raises ConfigError."""
    task, labels, problem = raw.get("task"), raw.get("labels"), raw.get("problem", "")
    named = isinstance(labels, list) and 0 < len(labels) <= MAX_WIDTH and all(isinstance(one, str) for one in labels)
    counted = type(labels) is int and 0 < labels <= MAX_WIDTH
    if task not in TASKS or problem not in PROBLEMS or not (named or counted):
        raise ConfigError(
            f"{HEAD}: expected a task ({', '.join(TASKS)}) with labels and problem, got {str(raw)[:60]}; save it again"
        )
    return task, tuple(labels) if isinstance(labels, list) else labels, problem  # type: ignore[return-value]
