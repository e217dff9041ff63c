"""Weights, gradients and optimizer state shared out over the shard axis: ZeRO (Rajbhandari et al. 2019, arXiv
1910.02054) by torch's fully_shard (stages 2 and 3), and by an owner for each parameter (stage 1)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.transformer import Transformer
from fledge.nn.linear import Joined, joined_bias
from fledge.parallel.mesh import Line, Mesh


class Apart(Joined):
    """A Joined whose weights may not be moved: fully_shard gathers each into memory of its own, and would not see that
    it was moved to lie beside the others."""

    def may_part(self, x: Tensor) -> bool:
        return False

    def product(self, x: Tensor) -> Tensor:
        maps = self.maps()
        if len(maps) == 1 or not self.is_plain():
            return super().product(x)
        return F.linear(x, torch.cat([one.weight for one in maps]), joined_bias(maps))

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]  # torch's: what .to() does
        return nn.Module._apply(self, fn, recurse)


def shard_fully(model: Transformer, mesh: Mesh, device_type: str, stage: int) -> dict[str, int]:
    """Share a model's parameters out over the shard axis, and where there is a data axis sum over it too: block by
    block, the rest together. Gives dimension 0 of each parameter before.

    Gradients are sums: every term of the loss is already divided by its global weight.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    lengths = {name: p.shape[0] for name, p in model.named_parameters()}
    data, shard = mesh["data"], mesh["shard"]
    if data.size > 1:
        ranks = torch.tensor(mesh["batch"].ranks).view(data.size, shard.size)
        groups = DeviceMesh.from_group([data.group, shard.group], device_type, ranks, mesh_dim_names=("data", "shard"))
    else:
        groups = DeviceMesh.from_group(shard.group, device_type, mesh_dim_names=("shard",))
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nobody writes into it
    for part in list(model.modules()):
        if type(part) is Joined:
            part.__class__ = Apart
    for block in own_blocks(model):
        fully_shard(block, mesh=groups, reshard_after_forward=stage == 3)
    fully_shard(model, mesh=groups, reshard_after_forward=False)
    # recipes call these; the output matrix and the heads are read after them, so the rest stays gathered
    register_fsdp_forward_method(model, "hidden")
    for part in sharded(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    return lengths


def own_blocks(model: Transformer) -> list[nn.Module]:
    """The blocks that run once a pass; shared ones stay with the rest."""
    stacks = (stack for stack in (model.encoder, model.decoder) if stack is not None)
    return [block for stack in stacks if not stack.config.shared for block in stack.blocks()]


def sharded(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def reshard(model: nn.Module) -> None:
    """Give back what a pass without a backward one left gathered."""
    for part in sharded(model):
        part.reshard()


def share_out(named: dict[str, Tensor], n_owners: int) -> dict[str, int]:
    """An owner for each parameter, the largest first and always to the one who has least."""
    loads = [0] * n_owners
    owners = {}
    for name, parameter in sorted(named.items(), key=lambda item: (-item[1].numel(), item[0])):
        owner = loads.index(min(loads))
        owners[name] = owner
        loads[owner] += parameter.numel()
    return owners


@torch.no_grad()
def hand_out(named: dict[str, Tensor], owners: dict[str, int], line: Line) -> None:
    """After a step, every owner's parameters to all."""
    for owner, rank in enumerate(line.ranks):
        own = [named[name] for name in named if owners.get(name) == owner]
        if not own:
            continue
        flat = torch.cat([p.detach().reshape(-1) for p in own])
        dist.broadcast(flat, rank, group=line.group)
        for parameter, part in zip(own, flat.split([p.numel() for p in own]), strict=True):
            parameter.detach().copy_(part.view_as(parameter))
