"""The value head of PPO: one number a token beside the policy's output, in a file of its own beside its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fledge.errors import CheckpointError
from fledge.model.config import HeadConfig
from fledge.model.heads import TaskHead
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.model.transformer import Transformer
from fledge.recipes.sampler import VALUE
from fledge.train.checkpointing import refuse_non_finite

FILE = "value_head.safetensors"


def with_value_head(model: Transformer) -> Transformer:
    """`model` with a value head that expects 0 everywhere. Its config doesn't know of it, so a folder's config.json
    stays that of the policy."""
    head = TaskHead(model.config.stack.width, HeadConfig(VALUE, "each", 1), model.config.stack.norm)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    model.heads[VALUE] = head.to(model.embedding.weight.device)
    return model


def write_value_head(model: Transformer, folder: Path) -> None:
    """Raises NonFiniteError rather than write a weight that is not finite."""
    head = {name: tensor.detach().cpu() for name, tensor in model.heads[VALUE].state_dict().items()}
    refuse_non_finite({f"heads.{VALUE}.{name}": tensor for name, tensor in head.items()})
    write_safetensors(folder / FILE, head)


def read_value_head(model: Transformer, folder: Path) -> Transformer:
    """Fill the model's value head from a folder's file. Raises CheckpointError for one that is missing or of another
    width."""
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a value head, found none; begin another run.dir")
    wanted = model.heads[VALUE].state_dict()
    with SafetensorsFile(path) as file, torch.no_grad():
        for name, tensor in wanted.items():
            found = file.entries.get(name)
            if found is None or tuple(found.shape) != tuple(tensor.shape):
                raise CheckpointError(f"{path}: expected {name} of shape {list(tensor.shape)}, got another")
            tensor.copy_(file.read(name))
    return model
