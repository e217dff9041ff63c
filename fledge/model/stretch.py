"""A loaded decoder made to read documents longer than its context: other rotary frequencies, or a window.

Weights stay as they are; what changes is the config and what each attention layer has of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from fledge.errors import ConfigError
from fledge.model.transformer import Transformer
from fledge.nn.attention import Attention, sight_of
from fledge.nn.block import Block
from fledge.nn.config import Alibi, Heads, LayerConfig, Rope, RopeScaling, StackConfig

Override = Literal["linear", "dynamic", "yarn"]


def stretch(model: Transformer, kind: Override, factor: float) -> Transformer:
    """`model`, in place, with its rotary frequencies scaled for documents `factor` times as long as those of
    pre-training, which is its context from then on; a scaling that it had is replaced.

    Raises ConfigError for a model without rotary positions, or with several kinds of them.
    """
    stack = decoder_of(model, "rope_scaling")
    found = {layer.position for layer in stack.layers}
    rope = next(iter(found))
    if len(found) > 1 or not isinstance(rope, Rope):
        got = ", ".join(sorted({"none" if one is None else type(one).__name__.lower() for one in found}))
        raise ConfigError(f"rope_scaling: expected one rotary position in all layers, got {len(found)} ({got})")
    original = model.config.context_tokens
    if rope.scaling is not None:
        original = rope.scaling.original_tokens or original
    scaled = replace(rope, scaling=RopeScaling(kind, factor, original))
    layers = tuple(replace(layer, position=scaled) for layer in stack.layers)
    return relayered(model, layers, int(original * factor))


def reach(model: Transformer, window: int, longest: int) -> Transformer:
    """`model`, in place, with documents of up to `longest` tokens, of which a token sees the last `window`, itself
    among them. A document that the window holds is computed as before.

    Positions count on; only distances up to the window's are ever read. Raises ConfigError where a position is known by
    itself (learned, sines, Falcon's ALiBi), goes by the document's length, or where a layer is no plain attention.
    """
    stack, context = decoder_of(model, "reach_tokens"), model.config.context_tokens
    if not 0 < window <= context:
        raise ConfigError(f"window_tokens: expected at most the context's {context}, got {window}")
    if longest <= context:
        raise ConfigError(f"reach_tokens: expected more than the context's {context}, got {longest}")
    if stack.inputs.positions:
        raise ConfigError(
            f"reach_tokens: expected positions known by distance (rotary, ALiBi), got {stack.inputs.positions} ones, "
            f"which end at the context; use overflow=sinks or truncate"
        )
    for layer in stack.layers:
        if reason := unwindowed(layer):
            raise ConfigError(f"reach_tokens: {reason}; use overflow=sinks or truncate")
    layers = tuple(replace(layer, window=min(layer.window or window, window)) for layer in stack.layers)
    return relayered(model, layers, longest)


def unwindowed(layer: LayerConfig) -> str:
    """Why a layer's attention can't have a window; empty: it can."""
    position = layer.position
    if type(layer.mixer) is not Heads or layer.pattern is not None:
        return "expected plain attention in every layer, got another mixer or a pattern"
    if isinstance(position, Rope):
        kind = "" if position.scaling is None else position.scaling.kind
        return f"rope scaling {kind} goes by the document's length" if kind in ("dynamic", "longrope") else ""
    if isinstance(position, Alibi) and not position.coarse:
        return ""
    return "expected rotary positions or ALiBi, got others"


def decoder_of(model: Transformer, name: str) -> StackConfig:
    stack = model.config.decoder
    if stack is None or model.config.encoder is not None or not stack.causal:
        raise ConfigError(f"{name}: expected a decoder alone, got {model.config.family}")
    return stack


def relayered(model: Transformer, layers: tuple[LayerConfig, ...], context_tokens: int) -> Transformer:
    """`model`, in place, with these layers' positions and windows."""
    assert model.decoder is not None and model.config.decoder is not None
    stack = replace(model.config.decoder, layers=layers)
    model.config = replace(model.config, decoder=stack, context_tokens=context_tokens)
    model.decoder.config = stack
    for layer, number in reversed(list(zip(layers, stack.block_of_layer, strict=True))):
        block = model.decoder.layers[number]
        assert isinstance(block, Block) and isinstance(block.attention, Attention)
        block.attention.position = layer.position
        block.attention.sight = sight_of(layer.mixer, stack.causal, layer)
    model._angles.clear()
    return model
