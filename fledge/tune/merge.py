"""Adapters into the weights they stand beside, and out again.

Merging keeps what was there, so that unmerging gives back the same bits; subtracting an update would not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fledge.errors import ConfigError
from fledge.model.transformer import Transformer
from fledge.nn.adapter import Adapter, Bottleneck
from fledge.nn.linear import Joined, Linear
from fledge.nn.quantized import Int4Linear, Int8Linear
from fledge.tune.attach import ATTRIBUTES, adapters
from fledge.tune.sites import Place
from fledge.tune.virtual import settled


@torch.no_grad()
def merge(model: Transformer) -> Callable[[], Transformer]:
    """Put every adapter of `model` into the weights, in place; gives what undoes it.

    Where embedding and output are one matrix and an adapter changes one of the two, they are two afterwards. Raises
    ConfigError for adapters that can only stand beside the weights (see `why_beside`).
    """
    reason = why_beside(model)
    if reason:
        raise ConfigError(f"merge: {reason}; generate, chat, evaluate and serve take the adapter folder as it is")
    config, output, kept = model.config, model.output, [(parameter, parameter.data) for parameter in model.parameters()]
    found = list(adapters(model))
    if model.output is None and any(place.path in ATTRIBUTES for place, _ in found):
        untie(model)
    for place, adapter in found:
        set_adapter(model, place, None)
        absorb(model, place, adapter)

    def unmerge() -> Transformer:
        for parameter, value in kept:
            parameter.data = value
        model.config, model.output = config, output
        for place, adapter in found:
            set_adapter(model, place, adapter)
        return model

    return unmerge


def merged(model: Transformer) -> Transformer:
    """`model` with its adapters in its weights, for good."""
    merge(model)
    return model


def served(model: Transformer) -> Transformer:
    """`model` as it answers: adapters in its weights, for good, or beside them where they can't be merged."""
    return settled(model) if why_beside(model) else merged(model)


def why_beside(model: Transformer) -> str:
    """Why a model's adapters can't be put into its weights; empty: they can."""
    if model.virtual is not None:
        return "expected adapters of weights, got virtual tokens, which no weight can stand for"
    for place, adapter in adapters(model):
        if isinstance(adapter, Bottleneck):
            return "expected linear changes of weights, got bottlenecks, which no weight can stand for"
        target = model.output if place.site.kind == "output" else model.get_submodule(place.path)
        if target is not None and any(isinstance(part, Int8Linear | Int4Linear) for part in target.modules()):
            return f"expected weights in floating point, got whole numbers in {place.path}, which would round a change"
    return ""


def untie(model: Transformer) -> None:
    """Give the output a matrix of its own, equal to the embedding."""
    weight = model.embedding.weight
    model.config = replace(model.config, tie=False)
    with torch.device("meta"):
        model.output = Linear(weight.shape[1], weight.shape[0])
    model.output.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)


def absorb(model: Transformer, place: Place, adapter: Adapter) -> None:
    """Write an adapter's change into the weights of its place."""
    if place.site.kind == "embedding":
        model.embedding.weight.data = adapter.merged(model.embedding.weight.data, None)[0]
    elif place.site.kind == "output":
        absorb_output(model, adapter)
    else:
        target = model.get_submodule(place.path)
        maps = target.maps() if isinstance(target, Joined) else [target]
        absorb_maps([one for one in maps if isinstance(one, Linear)], adapter)


def absorb_maps(maps: list[Linear], adapter: Adapter) -> None:
    sizes = [one.weight.shape[0] for one in maps]
    biased = [one.bias if one.bias is not None else one.weight.new_zeros(one.weight.shape[0]) for one in maps]
    weight, bias = adapter.merged(torch.cat([one.weight for one in maps]), torch.cat(biased))
    assert bias is not None
    for one, rows, shifts in zip(maps, weight.split(sizes), bias.split(sizes), strict=True):
        one.weight.data = rows.clone()
        if one.bias is not None:
            one.bias.data = shifts.clone()


def absorb_output(model: Transformer, adapter: Adapter) -> None:
    """Rows that fill the vocabulary up stay."""
    assert isinstance(model.output, Linear)
    n_rows = model.output_matrix.shape[0]
    bias = model.output_bias
    weight, changed = adapter.merged(model.output.weight.data[:n_rows], None if bias is None else bias.data[:n_rows])
    model.output.weight.data = torch.cat((weight, model.output.weight.data[n_rows:]))
    if bias is not None and changed is not None:
        bias.data = torch.cat((changed, bias.data[n_rows:]))


def set_adapter(model: Transformer, place: Place, adapter: Adapter | None) -> None:
    owner: nn.Module = model if place.path in ATTRIBUTES else model.get_submodule(place.path)
    setattr(owner, ATTRIBUTES.get(place.path, "adapter"), adapter)


def largest_difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors as a share of the largest number (of 1, if that is more)."""
    whole = max(1.0, float(one.abs().max()))
    return float((one - other).abs().max()) / whole
