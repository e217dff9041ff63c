"""Taking parts out of a model: weights (Han et al. 2015, arXiv 1506.02626), neurons and heads (Michel et al. 2019,
arXiv 1905.10650), layers (Sanh et al. 2019, arXiv 1910.01108). Neurons, heads and layers are then really gone.

R rows, T tokens, D width, F neurons of a feed-forward, G groups of heads that share a key/value head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fledge.batch import OneDocument, one_document
from fledge.compress.calibration import Walk, batches, walkable
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.model.families import family
from fledge.model.folder import put_parameter
from fledge.model.transformer import Transformer, build
from fledge.nn.config import Dense, Heads, LayerConfig, Moe, StackConfig
from fledge.nn.linear import Linear
from fledge.nn.quantized import Int4Linear, Int8Linear

LAYER = re.compile(r"^(encoder|decoder)\.layers\.(\d+)\.(.*)$")
ROWS = ("ffn.inward.gate.weight", "ffn.inward.up.weight", "ffn.inward.gate.bias", "ffn.inward.up.bias")
OF_MANY = {"whole": " with a norm over all heads", "own": " with a norm of each head's own"}


@dataclass(frozen=True)
class Kept:
    """What stays: `layers`, and of each of these its `neurons` and its `groups` of heads, by their old numbers, rising
    (None: all)."""

    layers: tuple[int, ...]
    neurons: Mapping[int, Tensor] | None = None
    groups: Mapping[int, Tensor] | None = None


@torch.no_grad()
def zero_smallest(model: Transformer, share: float, scope: str = "map") -> Transformer:
    """`model` whose smallest linear weights inside its blocks are zero, `share` of each map's or of all together."""
    weights = [part.weight for part in maps_of(model)]
    if scope == "model":
        bar = smallest(torch.cat([weight.abs().flatten() for weight in weights]), share)
        for weight in weights:
            weight.masked_fill_(weight.abs() <= bar, 0.0)
        return model
    for weight in weights:
        weight.masked_fill_(weight.abs() <= smallest(weight.abs().flatten(), share), 0.0)
    return model


def smallest(sizes: Tensor, share: float) -> Tensor:
    """The largest of the smallest `share` of `sizes`; below all of them for none."""
    n = round(share * sizes.numel())
    return torch.kthvalue(sizes, n).values if n else torch.tensor(-1.0)


def maps_of(model: Transformer) -> list[Linear]:
    """The linear maps inside the blocks. Raises ConfigError for a quantized model."""
    refuse_quantized(model)
    stacks = [stack for stack in (model.encoder, model.decoder) if stack is not None]
    return [part for stack in stacks for part in stack.layers.modules() if isinstance(part, Linear)]


def refuse_quantized(model: Transformer) -> None:
    if any(isinstance(part, Int8Linear | Int4Linear) for part in model.modules()):
        raise ConfigError("prune: expected weights in floating point, got quantized ones; prune the original")


def sparsity(model: Transformer) -> float:
    """Share of the linear weights inside the blocks that are zero."""
    weights = [part.weight for part in maps_of(model)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def hold_zeros(model: Transformer) -> None:
    """Have linear weights inside the blocks that are zero stay so in training by a rule that moves each weight by its
    own gradient: they get none."""
    for part in maps_of(model):
        held = part.weight != 0
        if not bool(held.all()):
            part.weight.register_hook(lambda grad, held=held: grad * held.to(grad.device))


def evenly(n_layers: int, n_kept: int) -> tuple[int, ...]:
    """`n_kept` of the layers, spread evenly from the first on: 0, 2, 4, 6, 8, 10 of twelve."""
    return tuple(number * n_layers // n_kept for number in range(n_kept))


@torch.no_grad()
def layer_importance(model: Transformer, rows: Tensor) -> list[float]:
    """1 - the mean cosine of what a block reads and what it gives, over text [R, T]: how far it turns the residual
    stream (block influence, Men et al. 2024, arXiv 2403.03853)."""
    walk, found = Walk(model, rows), []
    for index, block in walk.blocks():
        total, n = 0.0, 0
        for x, y in zip(walk.hidden, walk.outputs(index, block), strict=True):
            total += float(torch.cosine_similarity(x.float(), y.float(), dim=-1).sum())
            n += x.shape[0] * x.shape[1]
        found.append(1 - total / n)
    return found


NEURONS, GROUPS = "neurons", "groups"


def weight_importance(model: Transformer, which: str) -> list[Tensor]:
    """Of each layer's neurons [F] or groups [G]: the root of the sum of the squares of all their weights."""
    config, blocks = model.config.stack, walkable(model).layers
    return [
        sum_of(dict(block.named_parameters()), layer, lambda w: w.detach() ** 2, which).sqrt()
        for layer, block in zip(config.layers, blocks, strict=True)
    ]


def gradient_importance(model: Transformer, rows: Tensor, which: str) -> list[Tensor]:
    """The same by what the loss on text [R, T] would lose, to first order: |Σ weight · gradient| of all weights of a
    neuron or group (Molchanov et al. 2019, arXiv 1906.10771), batch by batch. Raises ConfigError for a model without a
    loss for the next token."""
    if model.config.encoder is not None or not model.config.lm:
        raise ConfigError(
            "calibration: expected a decoder, whose loss tells what is important, got another model; leave it out"
        )
    config, blocks = model.config.stack, walkable(model).layers
    found: list[Tensor] = []
    for ids in batches(rows):
        model.zero_grad(set_to_none=True)
        tokens, targets = one_document(ids[:, :-1]), ids[:, 1:]
        model.loss_sum(tokens, OneDocument(), targets, torch.ones(targets.shape)).backward()  # type: ignore[no-untyped-call]
        lost = [
            sum_of(dict(block.named_parameters()), layer, lost_of, which).abs()
            for layer, block in zip(config.layers, blocks, strict=True)
        ]
        found = [a + b for a, b in zip(found, lost, strict=True)] if found else lost
    model.zero_grad(set_to_none=True)
    return found


def lost_of(weight: nn.Parameter) -> Tensor:
    """weight · gradient; 0 where there is none."""
    return weight.detach() * weight.grad if weight.grad is not None else weight.detach() * 0


def sum_of(parts: dict[str, nn.Parameter], layer: LayerConfig, value: Any, which: str) -> Tensor:
    """Σ value(weight) over the weights of each neuron [F] or group [G] of a block."""
    if which == NEURONS:
        if not isinstance(layer.ffn, Dense):
            raise ConfigError("method: expected one feed-forward a layer to take neurons from, got experts")
        return sum_parts([
            value(w).sum(0) if name == "ffn.down.weight" else value(w).reshape(len(w), -1).sum(1)
            for name, w in parts.items() if name in (*ROWS, "ffn.down.weight")
        ])  # fmt: skip
    heads = plain_heads(layer)
    n = heads.n_kv_heads
    found = []
    for name, weight in parts.items():
        if name == "attention.out.weight":
            found.append(value(weight).reshape(weight.shape[0], n, -1).sum((0, 2)))
        elif re.fullmatch(r"attention\.qkv\.[qkv]\.(weight|bias)", name):
            found.append(value(weight).reshape(n, -1).sum(1))
    return sum_parts(found)


def sum_parts(parts: list[Tensor]) -> Tensor:
    total = torch.zeros_like(parts[0])
    for part in parts:
        total = total + part
    return total


def plain_heads(layer: LayerConfig) -> Heads:
    """The heads of a layer that can lose some. Raises ConfigError for attention whose heads can't be told apart."""
    mixer = layer.mixer
    if type(mixer) is not Heads or mixer.qk_norm in OF_MANY or mixer.global_maps:
        raise ConfigError(
            f"method: expected plain attention to take heads from, got {type(mixer).__name__}"
            f"{OF_MANY.get(mixer.qk_norm, '')}; choose neurons or layers"
        )
    return mixer


def kept_of(scores: Sequence[Tensor], share: float, what: str) -> dict[int, Tensor]:
    """Of each layer the numbers of its best, rising, as many in each: all but `share`. Raises ConfigError for none."""
    found = {}
    for number, layer in enumerate(scores):
        n = len(layer) - round(share * len(layer))
        if not 0 < n < len(layer):
            raise ConfigError(
                f"share: expected to take some of {len(layer)} {what} a layer and leave some, got {share}"
            )
        found[number] = layer.topk(n).indices.sort().values
    return found


def without(model: Transformer, kept: Kept) -> Transformer:
    """A model of what is kept; its tensors are views of `model`'s or copies of parts. Raises ConfigError for a shape
    that the family's folders can't hold."""
    refuse_quantized(model)
    walkable(model)
    stack = model.config.stack
    layers = tuple(layer_without(stack.layers[number], number, kept) for number in kept.layers)
    config = with_stack(model.config, replace(stack, layers=layers))
    family(config.family).write(config)  # a shape that can't be saved is refused now
    target = build(config)
    target.generation = model.generation
    old = dict(model.named_parameters())
    for name, parameter in list(target.named_parameters()):
        value = taken(name, old, stack, kept)
        if value.shape != parameter.shape:
            raise ConfigError(f"prune: {name}: expected {tuple(parameter.shape)}, got {tuple(value.shape)}")
        put_parameter(target, name, value)
    return target.train(model.training)


def layer_without(layer: LayerConfig, number: int, kept: Kept) -> LayerConfig:
    if kept.neurons is not None:
        if isinstance(layer.ffn, Moe):
            raise ConfigError("method: expected one feed-forward a layer to take neurons from, got experts")
        assert isinstance(layer.ffn, Dense)
        layer = replace(layer, ffn=replace(layer.ffn, hidden=len(kept.neurons[number])))
    if kept.groups is not None:
        heads, n = plain_heads(layer), len(kept.groups[number])
        per_group = heads.n_heads // heads.n_kv_heads
        layer = replace(layer, mixer=replace(heads, n_heads=n * per_group, n_kv_heads=n))
    return layer


def with_stack(config: ModelConfig, stack: StackConfig) -> ModelConfig:
    return replace(config, encoder=stack) if config.decoder is None else replace(config, decoder=stack)


def taken(name: str, old: dict[str, nn.Parameter], stack: StackConfig, kept: Kept) -> Tensor:
    """What a parameter of the smaller model holds: [..] of the larger one's."""
    found = LAYER.match(name)
    if found is None:
        return old[name].detach()
    number, part = kept.layers[int(found[2])], found[3]
    value = old[f"{found[1]}.layers.{number}.{part}"].detach()
    if kept.neurons is not None:
        if part in ROWS:
            return value[kept.neurons[number]].contiguous()
        if part == "ffn.down.weight":
            return value[:, kept.neurons[number]].contiguous()
    if kept.groups is not None:
        n = plain_heads(stack.layers[number]).n_kv_heads
        if re.fullmatch(r"attention\.qkv\.[qkv]\.(weight|bias)", part):
            rows = value.reshape(n, -1, *value.shape[1:])[kept.groups[number]]
            return rows.flatten(0, 1).contiguous()
        if part == "attention.out.weight":
            return value.reshape(value.shape[0], n, -1)[:, kept.groups[number]].flatten(1).contiguous()
    return value
