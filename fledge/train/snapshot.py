"""A copy in host memory of what a checkpoint is written from, so that training may go on while it is written."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fledge import device as devices
from fledge.train.recipe import Recipe

SPARE_BYTES = 64 << 20


def frozen_recipe(recipe: Recipe) -> Recipe:
    """A recipe whose `save` writes the weights of now, whatever becomes of `recipe.model`."""
    twin = copy.copy(recipe)
    twin.model = frozen(recipe.model, {})
    return twin


def frozen(module: Any, twins: dict[int, Any]) -> Any:
    """A module of the same classes and names over copies of the parameters; what is shared stays shared. `twins`: by
    the identity of what they copy. Not to be trained or run: gradients, hooks and the like are not copied."""
    if id(module) in twins:
        return twins[id(module)]
    twin = twins[id(module)] = module.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_parameters"] = {name: frozen_tensor(p, twins) for name, p in module._parameters.items()}
    twin.__dict__["_buffers"] = {name: frozen_tensor(b, twins) for name, b in module._buffers.items()}
    twin.__dict__["_modules"] = {name: part and frozen(part, twins) for name, part in module._modules.items()}
    return twin


def frozen_tensor(tensor: Tensor | None, twins: dict[int, Any]) -> Tensor | None:
    if tensor is None:
        return None
    if id(tensor) not in twins:
        value = copied(tensor)
        twins[id(tensor)] = nn.Parameter(value, False) if isinstance(tensor, nn.Parameter) else value
    found: Tensor = twins[id(tensor)]
    return found


def copied(tensor: Tensor) -> Tensor:
    """Its values of now, in host memory."""
    return tensor.detach().to("cpu", copy=True)


def snapshot_bytes(model: nn.Module, moments: dict[str, Tensor]) -> int:
    """Bytes of host memory that a snapshot takes."""
    tensors = [*model.parameters(), *model.buffers(), *moments.values()]
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors if not tensor.is_meta)


def fits(n_bytes: int) -> bool:
    """Whether a snapshot can be had without swapping; where the system doesn't tell, it is tried."""
    free = devices.available_bytes(torch.device("cpu"))
    return free is None or n_bytes + SPARE_BYTES <= free
