"""Adapters as PEFT stores them: tensors by the names and in the order of transformers' modules, and back.

r rank, I inputs, O outputs, V vocabulary, D width. lora_A [r, I], lora_B [O, r], lora_magnitude_vector [O],
lora_embedding_A [r, V], lora_embedding_B [D, r], ia3_l [O, 1] or [1, I]; of bottlenecks, which PEFT has none of, down
[m, O] and up [O, m].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fledge.errors import CheckpointError
from fledge.model.transformer import Transformer
from fledge.nn.adapter import Bottleneck, LowRank, LowRankEmbedding, Scale
from fledge.tune.attach import adapters, weight_at
from fledge.tune.heads import PREFIX
from fledge.tune.sites import Place, Site

ENDS = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
    "magnitude": ("lora_magnitude_vector",),
    "ia3": ("ia3_l",),
    "bottleneck": ("bottleneck_down.weight", "bottleneck_down.bias", "bottleneck_up.weight", "bottleneck_up.bias"),
}
Own = LowRank | LowRankEmbedding | Scale | Bottleneck


@dataclass(frozen=True)
class Stored:
    """One module's adapter in a file: its tensors by the ends of their names, and what an update is multiplied by."""

    tensors: dict[str, Tensor]
    rank: int = 0
    scale: float = 1.0


def by_site(model: Transformer) -> dict[str, list[tuple[Place, Own]]]:
    """A model's adapters by the module of transformers' that they belong to."""
    found: dict[str, list[tuple[Place, Own]]] = {}
    for place, adapter in adapters(model):
        found.setdefault(place.site.name, []).append((place, adapter))
    return found


@torch.no_grad()
def stored(model: Transformer) -> dict[str, Stored]:
    """Every adapter of a model as it stands in a file, by module. Maps of ours that are one module there become one
    update of the ranks' sum, whose B has zeros where a map's A is another's."""
    return {name: stored_at(model, group) for name, group in by_site(model).items()}


def stored_at(model: Transformer, group: list[tuple[Place, Own]]) -> Stored:
    site = group[0][0].site
    scales = [(place, one) for place, one in group if isinstance(one, Scale)]
    if scales:
        return stored_scales(site, scales)
    for _, one in group:
        if isinstance(one, Bottleneck):
            return Stored(dict(zip(ENDS["bottleneck"], parts_of(one), strict=True)))
        if isinstance(one, LowRankEmbedding):
            return Stored(dict(zip(ENDS["embedding"], (one.down, one.up), strict=True)), one.rank, one.scale)
    return stored_updates(model, site, [(place, one) for place, one in group if isinstance(one, LowRank)])


def parts_of(one: Bottleneck) -> tuple[Tensor, ...]:
    return one.down, one.down_bias, one.up, one.up_bias


def stored_scales(site: Site, group: list[tuple[Place, Scale]]) -> Stored:
    _, first = group[0]
    if first.side == "in":
        return Stored({"ia3_l": first.vector[None].clone()})
    whole = first.vector.new_ones(site.outputs)
    for place, one in group:
        whole[place.rows] = one.vector
    return Stored({"ia3_l": site.rows_to_theirs(whole)[:, None].contiguous()})


def stored_updates(model: Transformer, site: Site, group: list[tuple[Place, LowRank]]) -> Stored:
    _, first = group[0]
    rank, start = sum(one.rank for _, one in group), 0
    up = first.up.new_zeros(site.outputs, rank)
    for place, one in group:
        up[place.rows, start : start + one.rank] = one.up
        start += one.rank
    downs = torch.cat([one.down for _, one in group])
    tensors = dict(zip(ENDS["linear"], (downs, site.rows_to_theirs(up)), strict=True))
    if first.magnitude is not None:
        lengths = torch.linalg.vector_norm(weight_at(model, Place(site, site.path)), dim=1)
        for place, one in group:
            if one.magnitude is not None:
                lengths[place.rows] = one.magnitude
        tensors["lora_magnitude_vector"] = site.rows_to_theirs(lengths)
    return Stored(tensors, rank, first.scale)


@torch.no_grad()
def fill(model: Transformer, found: Mapping[str, Stored]) -> Transformer:
    """Give a model's adapters the values that `stored` gave of equal ones. Raises CheckpointError for others."""
    groups = by_site(model)
    if groups.keys() != found.keys():
        name = min(groups.keys() ^ found.keys())
        raise CheckpointError(f"adapter: expected adapters of the same modules, got a difference at {name[:80]!r}")
    for name, group in groups.items():
        check_shapes(name, group, found[name].tensors)
        fill_at(group, found[name])
    return model


def check_shapes(name: str, group: list[tuple[Place, Own]], tensors: dict[str, Tensor]) -> None:
    """Raises CheckpointError unless a module's tensors are those of its adapters."""
    site, one = group[0][0].site, group[0][1]
    rank = sum(getattr(adapter, "rank", 0) for _, adapter in group)
    wanted: dict[str, tuple[int, ...]]
    if isinstance(one, Scale):
        wanted = {"ia3_l": (1, site.inputs) if one.side == "in" else (site.outputs, 1)}
    elif isinstance(one, Bottleneck):
        wanted = {end: tuple(t.shape) for end, t in zip(ENDS["bottleneck"], parts_of(one), strict=True)}
    else:
        ends = ENDS["embedding" if isinstance(one, LowRankEmbedding) else "linear"]
        wanted = dict(zip(ends, ((rank, site.inputs), (site.outputs, rank)), strict=True))
        if isinstance(one, LowRank) and one.magnitude is not None:
            wanted["lora_magnitude_vector"] = (site.outputs,)
    got = {end: tuple(tensor.shape) for end, tensor in tensors.items()}
    if got != wanted:
        raise CheckpointError(f"adapter: {name}: expected {wanted}, got {got}; it is of another base or another config")


def fill_at(group: list[tuple[Place, Own]], saved: Stored) -> None:
    site = group[0][0].site
    updates = [(place, one) for place, one in group if isinstance(one, LowRank)]
    if updates:
        fill_updates(site, updates, saved.tensors)
    for place, one in group:
        if isinstance(one, Bottleneck):
            for parameter, end in zip(parts_of(one), ENDS["bottleneck"], strict=True):
                parameter.copy_(saved.tensors[end])
        elif isinstance(one, LowRankEmbedding):
            for parameter, end in zip((one.down, one.up), ENDS["embedding"], strict=True):
                parameter.copy_(saved.tensors[end])
        elif isinstance(one, Scale):
            vector = saved.tensors["ia3_l"].flatten()
            one.vector.copy_(vector if one.side == "in" else site.rows_to_ours(vector)[place.rows])


def fill_updates(site: Site, group: list[tuple[Place, LowRank]], tensors: dict[str, Tensor]) -> None:
    down, up = (tensors[end] for end in ENDS["linear"])
    up, lengths, start = site.rows_to_ours(up), tensors.get("lora_magnitude_vector"), 0
    for place, one in group:
        columns = slice(start, start + one.rank)
        one.down.copy_(down[columns])
        one.up.copy_(up[place.rows, columns])
        if one.magnitude is not None and lengths is not None:
            one.magnitude.copy_(site.rows_to_ours(lengths)[place.rows])
        start += one.rank


def named(found: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors of a file."""
    return {f"{PREFIX}{name}.{end}": t for name, one in found.items() for end, t in one.tensors.items()}


def in_modules(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A file's tensors by module. Raises CheckpointError for names that are no adapter's, and for values that are not
    finite."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        end = next((end for ends in ENDS.values() for end in ends if name.endswith(f".{end}")), None)
        if end is None or not name.startswith(PREFIX):
            raise CheckpointError(
                f"adapter: expected tensors of LoRA, (IA)^3 or bottlenecks, got {name[:80]!r}; a task head beside them "
                "needs a base that has it, or its task_type"
            )
        if not tensor.is_floating_point() or not math.isfinite(float(tensor.float().abs().sum())):
            raise CheckpointError(f"adapter: {name[:80]!r}: expected finite floating-point numbers, got others")
        found.setdefault(name.removeprefix(PREFIX).removesuffix(f".{end}"), {})[end] = tensor
    if not found:
        raise CheckpointError("adapter: expected tensors, got an empty file")
    return found
