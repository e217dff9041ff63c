"""What is quantized together: the linear maps of one input, which share their number of bits.

Maps that stand side by side in the engine, or in one matrix of a file, are one unit. A unit has a name such as
`decoder.layers.3.attention.qkv`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fledge.errors import ConfigError
from fledge.model.folder import weights_in_files
from fledge.model.quantization import INT8, Scheme, int4
from fledge.model.quantized_files import quantized_maps
from fledge.model.transformer import Transformer
from fledge.nn.attention import Attention, CrossAttention
from fledge.nn.block import Block
from fledge.nn.feedforward import FeedForward
from fledge.nn.linear import Joined, Linear

FLOW = ("attention.qkv", "attention.global_qkv", "attention.out", "cross.q", "cross.kv", "cross.out")


@dataclass(frozen=True)
class Unit:
    """`maps`: the plain linear maps by the names of their weights. `parent` computes with them, `block` holds them."""

    name: str
    maps: dict[str, Linear]
    parent: Attention | CrossAttention | FeedForward
    block: Block

    @property
    def inputs(self) -> int:
        return self.weights[0].shape[1]

    @property
    def weights(self) -> list[Tensor]:
        return [one.weight.detach() for one in self.maps.values()]

    @property
    def n_weights(self) -> int:
        return sum(weight.numel() for weight in self.weights)


def units_of(model: Transformer) -> list[Unit]:
    """The units of a model's blocks, in the order in which a token meets them. Maps of experts that a file holds as one
    tensor are left out. Raises ConfigError for a model that is quantized already."""
    if quantized_maps(model):
        raise ConfigError("model: expected weights in floating point, got quantized ones; start from the original")
    stacked = {name for row in weights_in_files(model.config).values() if row.how == "stacked" for name in row.ours}
    units = []
    for path, block in model.named_modules():
        if isinstance(block, Block):
            units += [unit for unit in block_units(path, block) if not stacked.intersection(unit.maps)]
    return units


def block_units(path: str, block: Block) -> list[Unit]:
    """Attention, cross-attention, then the feed-forward layer or each expert."""
    units = []
    for name in FLOW:
        owner, _, last = name.partition(".")
        parent = getattr(block, owner)
        module = getattr(parent, last, None) if parent is not None else None
        if module is not None:
            units.append(unit_of(f"{path}.{name}", module, parent, block))
    for name, part in block.named_modules():
        if isinstance(part, FeedForward):
            units += [unit_of(f"{path}.{name}.{last}", getattr(part, last), part, block) for last in ("inward", "down")]
    return units


def unit_of(name: str, module: nn.Module, parent: Attention | CrossAttention | FeedForward, block: Block) -> Unit:
    if isinstance(module, Joined):
        maps = {f"{name}.{child}.weight": one for child, one in module.named_children() if isinstance(one, Linear)}
    else:
        assert isinstance(module, Linear)
        maps = {f"{name}.weight": module}
    return Unit(name, maps, parent, block)


def fitting(unit: Unit, scheme: Scheme) -> tuple[Scheme, str]:
    """The scheme that a unit can have, and why it is another than was asked for (empty if it isn't)."""
    if scheme.group and unit.inputs % scheme.group:
        return INT8, f"{unit.inputs} inputs are no multiple of the group of {scheme.group}"
    return scheme, ""


def scheme_named(bits: int, group: int) -> Scheme:
    return INT8 if bits == 8 else int4(group)
