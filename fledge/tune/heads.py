"""A task head that is trained whole beside an adapter: its weights in the adapter's file, as PEFT's modules to save."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ModelConfig
from fledge.model.folder import put_parameter, weights_in_files
from fledge.model.names import Weight, their_shape, to_ours, to_theirs
from fledge.model.transformer import Transformer

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


def head_rows(config: ModelConfig) -> dict[str, Weight]:
    """The heads' tensors by their names in files."""
    rows = weights_in_files(config).items()
    return {name: row for name, row in rows if row.ours and all(one.startswith("heads.") for one in row.ours)}


def head_modules(model: Transformer) -> list[str]:
    """The heads' modules as transformers calls them: what PEFT saves whole."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in head_rows(model.config)))


@torch.no_grad()
def head_tensors(model: Transformer) -> dict[str, Tensor]:
    """The heads' weights by their names in an adapter's file."""
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {prefix_of(model) + name: to_theirs(row, ours) for name, row in head_rows(model.config).items()}


def prefix_of(model: Transformer) -> str:
    """What stands before the base's names in an adapter's file."""
    return PREFIX if model.virtual is None else PREFIX_OF_VIRTUAL


def without_head(
    model: Transformer, tensors: Mapping[str, Tensor], prefix: str = PREFIX
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's tensors: those of adapters, and those of the model's heads, by their names in files."""
    known = {prefix + name: name for name in head_rows(model.config)}
    head = {known[name]: tensor for name, tensor in tensors.items() if name in known}
    return {name: tensor for name, tensor in tensors.items() if name not in known}, head


def fill_heads(model: Transformer, head: Mapping[str, Tensor], whole: bool = True) -> Transformer:
    """Give the heads their values: all, unless `whole` is false. Raises CheckpointError for some of all, other shapes,
    or values that are not finite numbers."""
    rows = head_rows(model.config)
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
