"""What an adapter's folder changes, apart from any base's weights: for one base that answers with many adapters.

I inputs, O outputs, r rank, V vocabulary, D width. LoRA, DoRA and (IA)^3 come down to one form. Of an input x and an
output y = x Wᵀ + b of a map: x is multiplied by `before`, and y becomes factor · y + (x downᵀ) up + offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fledge.errors import ConfigError
from fledge.model.folder import load_model
from fledge.model.transformer import Transformer
from fledge.nn.adapter import Bottleneck, LowRank, LowRankEmbedding, Scale
from fledge.nn.linear import Joined
from fledge.tune.attach import adapters, weight_at
from fledge.tune.copies import copied
from fledge.tune.folder import adapter_folder, load_adapter, opened
from fledge.tune.peft_config import CONFIG, VIRTUAL, read_peft_config
from fledge.tune.sites import OUTPUT, Place
from fledge.tune.tensors import Own


@dataclass(frozen=True)
class Change:
    """Of outputs `begin` … `begin` + `size` of the map at `path`; float32 and in one piece each: before [I], down
    [r, I], up [r, size], factor and offset [size]."""

    path: str
    begin: int
    size: int
    before: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    factor: Tensor | None = None
    offset: Tensor | None = None


@dataclass(frozen=True)
class Changes:
    """Of one adapter. `embedding`: what is added to the token embedding's rows, [V, r] times [r, D]."""

    maps: tuple[Change, ...]
    embedding: tuple[Tensor, Tensor] | None = None


def changes_of(folder: str | Path, base: Path, device: torch.device | str = "cpu") -> Changes:
    """What the adapter in a folder changes of the base in another. Raises CheckpointError and ConfigError as
    `load_adapter` does, and ConfigError for adapters that are no linear change of weights, or no change alone."""
    found, model = adapter_folder(folder), load_model(base, "meta")
    if found is not None:
        raw = read_peft_config(found)
        if raw["peft_type"] in VIRTUAL or raw.get("modules_to_save"):
            what = "virtual tokens" if raw["peft_type"] in VIRTUAL else "modules that are saved whole"
            raise ConfigError(f"{found / CONFIG}: {beside(what)}")
        with opened(found) as file:
            if copied(model, file.entries):  # which the base's weights are compared with
                model = load_model(base)
    model = load_adapter(model, folder, base, torch.device("cpu"))
    if any(isinstance(one, LowRank) and one.magnitude is not None for _, one in adapters(model)):
        # how long the base's rows are decides what DoRA makes of them: this once its weights are read
        model = load_adapter(load_model(base), folder, base)
    found_maps, embedding = [], None
    for place, adapter in adapters(model):
        if isinstance(adapter, LowRankEmbedding):
            both = (adapter.down.t(), adapter.scale * adapter.up.t())
            embedding = tuple(ready(one, device) for one in both)
        else:
            found_maps.append(change(model, place, adapter, device))
    return Changes(tuple(found_maps), embedding)  # type: ignore[arg-type]  # two of them


def beside(what: str) -> str:
    """Why adapters of a kind are not for one base with many."""
    return (
        f"expected LoRA, DoRA or (IA)^3 for one base with many adapters, got {what}; serve the adapter's folder by "
        "itself"
    )


@torch.no_grad()
def change(model: Transformer, place: Place, adapter: Own, device: torch.device | str) -> Change:
    if isinstance(adapter, Bottleneck):
        raise ConfigError(f"adapter: {beside('bottlenecks')}")
    path, begin = packed_place(model, place)
    parts: dict[str, Tensor] = {}
    if isinstance(adapter, Scale):
        parts["before" if adapter.side == "in" else "factor"] = adapter.vector
    elif isinstance(adapter, LowRank):
        parts = {"down": adapter.down, "up": adapter.scale * adapter.up.t()}
        if adapter.magnitude is not None:
            share = adapter.magnitude / adapter.lengths(weight_at(model, place))
            parts |= {"up": parts["up"] * share, "factor": share}
            bias = bias_at(model, place)
            if bias is not None:
                parts["offset"] = (1 - share) * bias
    if place.path == OUTPUT and parts.keys() != {"down", "up"}:
        raise ConfigError(f"adapter: {beside('another change than LoRA of the output')}")
    return Change(path, begin, place.outputs, **{name: ready(one, device) for name, one in parts.items()})


def packed_place(model: Transformer, place: Place) -> tuple[str, int]:
    """(the module that computes a place's map in a packed model, its first output there): maps that stand side by side
    are one."""
    parent, _, name = place.path.rpartition(".")
    joined = model.get_submodule(parent)
    if not isinstance(joined, Joined):
        return place.path, 0
    names = list(joined.parts())
    return parent, sum(joined.sizes[: names.index(name)])


def bias_at(model: Transformer, place: Place) -> Tensor | None:
    """The base's bias [O] of a place; None without one."""
    target = model.get_submodule(place.path)
    parts = list(target.parts().values()) if isinstance(target, Joined) else [target]
    if all(one.bias is None for one in parts):
        return None
    sizes = target.sizes if isinstance(target, Joined) else (place.outputs,)
    biases = (torch.zeros(n) if one.bias is None else one.bias for one, n in zip(parts, sizes, strict=True))
    return torch.cat(list(biases))  # type: ignore[arg-type]


def ready(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor.detach().to(device, torch.float32).contiguous()
