"""Which sizes can be built and which parts go together; what has no definition is refused with the nearest choice.

Runs before anything is allocated and imports no torch.
"""

from __future__ import annotations

import math

from fledge.errors import ConfigError
from fledge.nn.config import (
    MAX_ALL_EXPERTS,
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_WIDTH,
    Alibi,
    BigBird,
    Buckets,
    Disentangled,
    Fixed,
    Heads,
    Kernelised,
    LayerConfig,
    Longformer,
    LowRank,
    Moe,
    Pattern,
    Prefix,
    Rope,
    RopeScaling,
    StackConfig,
    Strided,
    bounded,
    nearest_divisor,
)


def check_stack(stack: StackConfig, at: str) -> None:
    """Raise ConfigError for a stack that cannot be built or has no definition."""
    bounded(f"{at}.width", stack.width, 1, MAX_WIDTH)
    bounded(f"{at}.layers", len(stack.layers), 1, MAX_LAYERS)
    if not 0.0 <= stack.dropout < 1.0:
        raise ConfigError(f"{at}.dropout: expected 0 <= dropout < 1, got {stack.dropout}")
    if not 0 <= stack.norm.eps <= 1:
        raise ConfigError(f"{at}.norm.eps: expected a number in 0..1, got {stack.norm.eps}")
    inputs = stack.inputs
    for name, factor in (("norm.offset", stack.norm.offset), ("inputs.scale", inputs.scale)):
        if not abs(factor) <= 1e6:
            raise ConfigError(f"{at}.{name}: expected a number in -1e6..1e6, got {factor}")
    for name, value in (("rows", inputs.rows), ("offset", inputs.offset), ("kinds", inputs.kinds)):
        bounded(f"{at}.inputs.{name}", value, 0, MAX_CONTEXT)
    bounded(f"{at}.inputs.width", inputs.width, 0, MAX_WIDTH)
    if inputs.positions == "sinusoidal" and stack.width % 2:
        raise ConfigError(f"{at}.width: sinusoidal positions need an even width, got {stack.width}")
    if stack.norm.kind == "batch" and stack.causal:
        raise ConfigError(
            f"{at}.norm: BatchNorm's statistics mix tokens, later ones included, so it has no causal form; "
            "use layer or rms"
        )
    if stack.shared and (
        len(stack.shared) != len(stack.layers) or sorted(set(stack.shared)) != list(range(stack.n_blocks))
    ):
        raise ConfigError(f"{at}.shared: expected one block index a layer, 0.. without gaps, got {stack.shared}")
    if stack.cross is not None:
        check_heads(stack.cross, f"{at}.cross")
        if stack.cross.clip is not None:
            raise ConfigError(f"{at}.cross.clip: expected none in cross-attention, got {stack.cross.clip}")
    check_conv(stack, at)
    if len({layer.position for layer in stack.layers if isinstance(layer.position, Disentangled)}) > 1:
        raise ConfigError(f"{at}: expected one disentangled position for all layers, as they share its table")
    seen: set[LayerConfig] = set()
    for index, layer in enumerate(stack.layers):
        if layer not in seen:
            seen.add(layer)
            check_layer(layer, stack, f"{at}.layers[{index}]")


def check_conv(stack: StackConfig, at: str) -> None:
    conv = stack.conv
    if conv is None:
        return
    bounded(f"{at}.conv.kernel", conv.kernel, 1, 1023)
    bounded(f"{at}.conv.groups", conv.groups, 1, stack.width)
    if stack.causal or not conv.kernel % 2 or stack.width % conv.groups:
        raise ConfigError(
            f"{at}.conv: expected an encoder, an odd kernel and groups that divide the width {stack.width}, "
            f"got kernel {conv.kernel} and {conv.groups} groups"
        )


def check_layer(layer: LayerConfig, stack: StackConfig, at: str) -> None:
    check_heads(layer.mixer, at)
    if layer.window is not None:
        bounded(f"{at}.window", layer.window, 1, MAX_CONTEXT)
    ffn = layer.ffn
    if isinstance(ffn, Moe):
        bounded(f"{at}.ffn.n_experts", ffn.n_experts, 1, MAX_EXPERTS)
        bounded(f"{at}: experts of all layers", ffn.n_experts * len(stack.layers), 1, MAX_ALL_EXPERTS)
        bounded(f"{at}.ffn.top_k", ffn.top_k, 1, ffn.n_experts)
        if not 0 <= ffn.balance <= 1000:
            raise ConfigError(f"{at}.ffn.balance: expected a number in 0..1000, got {ffn.balance}")
    bounded(f"{at}.ffn.hidden", layer.dense.hidden, 1, 64 * MAX_WIDTH)
    check_position(layer, at)
    check_pattern(layer.pattern, at)
    reason = no_definition(layer, stack.causal)
    if reason:
        raise ConfigError(f"{at}: {reason}")


def check_heads(heads: Heads, at: str) -> None:
    bounded(f"{at}.n_heads", heads.n_heads, 1, MAX_HEADS)
    bounded(f"{at}.n_kv_heads", heads.n_kv_heads, 1, heads.n_heads)
    bounded(f"{at}.head_channels", heads.head_channels, 1, MAX_WIDTH)
    if heads.n_heads % heads.n_kv_heads:
        raise ConfigError(
            f"{at}: n_heads {heads.n_heads} is not a multiple of n_kv_heads {heads.n_kv_heads}; "
            f"nearest is {nearest_divisor(heads.n_heads, heads.n_kv_heads)}"
        )
    for name, value in (("scale", heads.scale), ("softcap", heads.softcap), ("clip", heads.clip)):
        if value is not None and not 1e-9 <= value <= 1e9:
            raise ConfigError(f"{at}.{name}: expected a number in 1e-9..1e9, got {value}")
    if isinstance(heads, LowRank):
        bounded(f"{at}.rank", heads.rank, 1, MAX_WIDTH)
        bounded(f"{at}.tokens", heads.tokens, 1, MAX_CONTEXT)


def check_pattern(pattern: Pattern, at: str) -> None:
    """Raise ConfigError for a pattern whose numbers have no meaning."""
    numbers = {
        Longformer: ("window",), BigBird: ("block",), Strided: ("stride",), Fixed: ("stride", "summary"),
    }.get(type(pattern), ())  # type: ignore[arg-type]  # fmt: skip
    for name in numbers:
        bounded(f"{at}.pattern.{name}", getattr(pattern, name), 1, MAX_CONTEXT)
    if isinstance(pattern, BigBird):
        bounded(f"{at}.pattern.n_random", pattern.n_random, 0, MAX_CONTEXT)
        bounded(f"{at}.pattern.full_tokens", pattern.full_tokens, 0, MAX_CONTEXT)


def check_position(layer: LayerConfig, at: str) -> None:
    position, heads = layer.position, layer.mixer
    if isinstance(position, Rope):
        turned = position.channels or heads.head_channels
        if turned % 2 or not 0 < turned <= heads.head_channels:
            raise ConfigError(
                f"{at}: rotary position needs an even number of channels of at most {heads.head_channels}, got {turned}"
            )
        if not 1 <= position.theta <= 1e15:
            raise ConfigError(f"{at}: rotary theta: expected a number in 1..1e15, got {position.theta}")
        if position.scaling is not None:
            check_scaling(position.scaling, position.theta, turned, at)
    if isinstance(position, Buckets):
        bounded(f"{at}.n_buckets", position.n_buckets, 2, MAX_WIDTH)
        bounded(f"{at}.max_distance", position.max_distance, position.n_buckets // 4 + 1, MAX_CONTEXT)
    if isinstance(position, Disentangled):
        bounded(f"{at}.span", position.span, 1, MAX_CONTEXT)
        bounded(f"{at}.buckets", position.buckets, 0, MAX_CONTEXT)
        if position.buckets and not 4 <= position.buckets < 2 * (position.span - 1):
            raise ConfigError(
                f"{at}.buckets: expected 0 or 4..{2 * (position.span - 1) - 1} for a span of {position.span}, "
                f"got {position.buckets}"
            )
        if heads.n_kv_heads != heads.n_heads:
            raise ConfigError(
                f"{at}: disentangled positions need as many key/value heads as heads; use {heads.n_heads}, or rope"
            )


def check_scaling(scaling: RopeScaling, theta: float, turned: int, at: str) -> None:
    at = f"{at}: rope scaling {scaling.kind}"
    bounded(f"{at}: original_tokens", scaling.original_tokens, 1, MAX_CONTEXT)
    factors = (*scaling.short_factors, *scaling.long_factors)
    positive = (scaling.factor, scaling.low_frequency, scaling.beta_fast, scaling.beta_slow, *factors)
    for value in positive:
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{at}: expected factors and frequencies above 0, got {value}")
    if scaling.attention_factor is not None and not (0 < scaling.attention_factor < math.inf):
        raise ConfigError(f"{at}: attention_factor: expected a number above 0, got {scaling.attention_factor}")
    if scaling.kind == "llama3" and not scaling.low_frequency < scaling.high_frequency < math.inf:
        low, high = scaling.low_frequency, scaling.high_frequency
        raise ConfigError(f"{at}: expected low_frequency below high_frequency, got {low} and {high}")
    if scaling.kind == "dynamic" and turned < 4:
        raise ConfigError(f"{at}: expected at least 4 channels that turn, got {turned}")
    if scaling.kind == "yarn" and not (theta > 1 and min(scaling.mscale, scaling.mscale_all) >= 0):
        raise ConfigError(f"{at}: expected a theta above 1 and an mscale of at least 0, got {theta}, {scaling.mscale}")
    if scaling.kind == "longrope":
        if {len(scaling.short_factors), len(scaling.long_factors)} != {turned // 2}:
            got = f"{len(scaling.short_factors)} short and {len(scaling.long_factors)} long"
            raise ConfigError(f"{at}: expected {turned // 2} factors of each, one a pair of channels, got {got}")
        if scaling.original_tokens < 2:
            raise ConfigError(f"{at}: original_tokens: expected at least 2, got {scaling.original_tokens}")


def no_definition(layer: LayerConfig, causal: bool) -> str:
    """Why a layer has no definition, with the nearest choice; empty if it has one."""
    mixer, position, pattern = layer.mixer, layer.position, layer.pattern
    bias = isinstance(position, Alibi | Buckets | Disentangled)
    if isinstance(mixer, LowRank):
        if causal:
            return "Linformer mixes all positions, later ones included, so it has no causal form; use a window"
        if bias:
            return (
                "Linformer's keys are mixtures of positions, so a bias by distance has no meaning; use rope or learned"
            )
        if layer.window is not None or pattern is not None:
            return "Linformer's keys are mixtures of positions, so it has no window; use ordinary heads"
    if isinstance(mixer, Kernelised):
        if bias:
            return "kernelised attention forms no scores, so a bias has no meaning; use rope, learned or sinusoidal"
        if layer.window is not None or pattern is not None:
            return "kernelised attention sums over all it sees, so it has no window; use ordinary heads"
        if mixer.softcap is not None:
            return "kernelised attention forms no scores, so a softcap has no meaning; use ordinary heads"
    if isinstance(position, Alibi) and position.coarse and layer.window is not None:
        return "Falcon's ALiBi goes by the key's position in the document, so it has no window; use alibi or rope"
    if isinstance(position, Disentangled) and mixer.clip is not None:
        return "disentangled positions read the maps of queries and keys themselves, which no clip reaches; use rope"
    if pattern is not None and layer.window is not None:
        return "a pattern has its own window, so another beside it has no meaning; use one of them"
    if isinstance(pattern, Longformer | BigBird) and causal:
        return "Longformer and BigBird see both ways; use window, strided or fixed in a decoder"
    if isinstance(pattern, Strided | Fixed) and not causal:
        return "Sparse Transformer's patterns are defined for decoders; use window, longformer or bigbird in an encoder"
    if isinstance(pattern, Prefix) and not causal:
        return "an encoder sees the whole document, so a prefix has no meaning; use it in a decoder"
    return ""
