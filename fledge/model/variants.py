"""One field away: any family's model with another position, attention or norm.

`varied` is applied to what a family has built; what has no definition is refused with the reason and the nearest
choice (`fledge.nn.check`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import InitConfig, ModelConfig, ShapeConfig
from fledge.nn.config import (
    Alibi,
    BigBird,
    Buckets,
    Disentangled,
    Fixed,
    Heads,
    Inputs,
    Kernelised,
    LayerConfig,
    Longformer,
    LowRank,
    Norm,
    NormSlot,
    Position,
    Rope,
    StackConfig,
    Strided,
)

OWN_FORMAT = "fledge"
"""The family of models that no published format can express: see `fledge.model.families.native`."""

POSITIONS = ("none", "sinusoidal", "learned", "rope", "alibi", "buckets", "disentangled")
ATTENTIONS = ("full", "window", "longformer", "bigbird", "strided", "fixed", "linformer", "linear")

NUMBERS = {
    "window": ("window", "longformer"),
    "stride": ("strided", "fixed"),
    "summary": ("fixed",),
    "block": ("bigbird",),
    "random_blocks": ("bigbird",),
    "rank": ("linformer",),
}
DEFAULTS = {"window": 128, "stride": 128, "summary": 1, "block": 64, "random_blocks": 3, "rank": 64}

SLOTS: dict[str, tuple[NormSlot, ...]] = {
    "before": ("before",),
    "after": ("after",),
    "sandwich": ("before", "after"),
    "residual": ("residual",),
}


def varied(config: ModelConfig, shape: ShapeConfig) -> ModelConfig:
    """`config` with the position, attention and norm that `shape` names; itself where it names none.
    Raises ConfigError for a pair that has no definition, and for a number that nothing reads."""
    for name, readers in NUMBERS.items():
        elsewhere = name == "window" and not shape.attention  # some families have windows of their own
        if getattr(shape, name) and shape.attention not in readers and not elsewhere:
            raise ConfigError(f"model.{name}: read by model.attention={' or '.join(readers)} only; set that too")
    try:
        stacks: dict[str, Any] = {
            name: varied_stack(stack, shape, config.context_tokens) for name, stack in config.stacks.items()
        }
        return replace(config, **stacks)
    except ConfigError as error:
        named = " ".join(f"model.{key}={getattr(shape, key)}" for key in CHOICES if getattr(shape, key))
        raise ConfigError(f"{named}: {error}") from None


CHOICES = ("position", "attention", "norm", "norm_at")


def base_shape(shape: ShapeConfig) -> ShapeConfig:
    """What a family is asked to build before it is varied."""
    ours: dict[str, Any] = dict.fromkeys(CHOICES, "") | dict.fromkeys(NUMBERS, 0)
    if not shape.attention:
        del ours["window"]
    if shape.position:
        ours["rope_theta"] = 0.0
    return replace(shape, **ours)


def varied_stack(stack: StackConfig, shape: ShapeConfig, context: int) -> StackConfig:
    if shape.position:
        stack = with_position(stack, shape, context)
    if shape.attention:
        stack = replace(stack, layers=tuple(with_attention(layer, shape, context) for layer in stack.layers))
    if shape.norm:
        stack = replace(stack, norm=norm_of_kind(stack.norm, shape.norm))
    if shape.norm_at and SLOTS[shape.norm_at] != stack.norm_at:
        # without a norm on the sum, the residual stream needs one at its end
        stack = replace(stack, norm_at=SLOTS[shape.norm_at], final_norm=shape.norm_at != "residual")
    return stack


def with_position(stack: StackConfig, shape: ShapeConfig, context: int) -> StackConfig:
    """Every layer's position, and what is added to the embedding."""
    inputs = replace(stack.inputs, positions="", rows=0, offset=0)
    if shape.position in ("learned", "sinusoidal"):
        inputs = added_to_the_embedding(inputs, shape.position, context)
    layers = tuple(replace(layer, position=inside_attention(layer, shape, context)) for layer in stack.layers)
    return replace(stack, inputs=inputs, layers=layers)


def added_to_the_embedding(inputs: Inputs, position: str, context: int) -> Inputs:
    if position == "learned":
        return replace(inputs, positions="learned", rows=context)
    return replace(inputs, positions="sinusoidal")


def inside_attention(layer: LayerConfig, shape: ShapeConfig, context: int) -> Position:
    own: dict[str, Callable[[], Position]] = {
        "rope": lambda: Rope(shape.rope_theta or 10000.0),
        "alibi": Alibi,
        "buckets": Buckets,
        "disentangled": lambda: Disentangled(min(512, context)),
    }
    make = own.get(shape.position)
    if make is None:
        return None
    kinds = {"rope": Rope, "alibi": Alibi, "buckets": Buckets, "disentangled": Disentangled}
    if not isinstance(layer.position, kinds[shape.position]):
        return make()
    # a family that has this kind keeps its numbers
    position = layer.position
    return replace(position, theta=shape.rope_theta or position.theta) if isinstance(position, Rope) else position


def with_attention(layer: LayerConfig, shape: ShapeConfig, context: int) -> LayerConfig:
    """A layer that mixes and sees as `shape.attention` says."""
    numbers = {name: getattr(shape, name) or default for name, default in DEFAULTS.items()}
    heads = {f.name: getattr(layer.mixer, f.name) for f in fields(Heads)} | {"global_maps": False}
    mixer = Heads(**heads)
    if shape.attention == "linear":
        mixer = Kernelised(**heads)
    if shape.attention == "linformer":
        mixer = LowRank(**heads, rank=min(numbers["rank"], context), tokens=context)
    pattern: Any = None
    if shape.attention == "longformer":
        pattern = Longformer(numbers["window"])
    if shape.attention == "bigbird":
        pattern = BigBird(numbers["block"], numbers["random_blocks"])
    if shape.attention == "strided":
        pattern = Strided(numbers["stride"])
    if shape.attention == "fixed":
        pattern = Fixed(numbers["stride"], numbers["summary"])
    window = numbers["window"] if shape.attention == "window" else None
    return replace(layer, mixer=mixer, window=window, pattern=pattern)


def norm_of_kind(norm: Norm, kind: Any) -> Norm:
    """Another kind of norm with the custom parameters of its kind; the same one where it is of that kind already."""
    return norm if norm.kind == kind else Norm(kind, norm.eps, bias=kind != "rms")


def expressible(
    config: ModelConfig,
    read: Callable[[dict[str, Any]], ModelConfig],
    write: Callable[[ModelConfig], dict[str, Any]],
) -> bool:
    """Whether a family's config.json says all of `config`: whether what it reads back is the same."""
    try:
        again = read({"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie, **write(config)})
    except ConfigError:
        return False
    return comparable(again) == comparable(config)


def comparable(config: ModelConfig) -> ModelConfig:
    """A config without what a folder needs not keep: dropout, initial weights, names of ids."""
    stacks: dict[str, Any] = {name: replace(stack, dropout=0.0) for name, stack in config.stacks.items()}
    return replace(config, **stacks, init=InitConfig(), special_ids={}, heads=())
