"""What decoder families share: the sizes in config.json, the weight-name table, and the way from a shape to a config.

Most families' config.json and weight names are LLaMA's with a few differences; a family file states the differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import InitConfig, ModelConfig, ShapeConfig
from fledge.model.families.family import (
    ACTIVATIONS,
    How,
    Weight,
    activation_name,
    choice,
    flag,
    head_channels,
    integer,
    needed,
    number,
    refuse,
    rounded_up,
    special_ids,
)
from fledge.model.families.rotary import STRETCHED, max_position_embeddings, scaling_json
from fledge.nn.config import MAX_LAYERS, Activation, LayerConfig, Norm, Rope, StackConfig

BLOCK = "decoder.layers.{i}."
LINEARS: dict[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("attention.qkv.q",),
    "self_attn.k_proj": ("attention.qkv.k",),
    "self_attn.v_proj": ("attention.qkv.v",),
    "self_attn.o_proj": ("attention.out",),
    "mlp.gate_proj": ("ffn.inward.gate",),
    "mlp.up_proj": ("ffn.inward.up",),
    "mlp.down_proj": ("ffn.down",),
}
NORMS = {"input_layernorm": "attention_norms.before", "post_attention_layernorm": "ffn_norms.before"}
QK_NORMS = {"self_attn.q_norm": "attention.q_norm", "self_attn.k_norm": "attention.k_norm"}
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Sizes:
    """The numbers that every such config.json has."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    channels: int
    hidden: int
    context: int
    vocab_size: int
    activation: Activation


def read_sizes(raw: dict[str, Any], default: dict[str, Any], activation: str = "hidden_act") -> Sizes:
    """The sizes of a config.json; `default` are those of the family's class in transformers. Raises ConfigError."""
    width = integer(raw, "hidden_size", default["hidden_size"])
    heads = integer(raw, "num_attention_heads", default["num_attention_heads"])
    channels = raw.get("head_dim", default.get("head_dim"))
    if channels is None and (heads < 1 or width % heads):
        raise ConfigError(f"config.json: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    return Sizes(
        width,
        layer_count(raw, "num_hidden_layers", default["num_hidden_layers"]),
        heads,
        integer(raw, "num_key_value_heads", default.get("num_key_value_heads", heads)),
        width // heads if channels is None else integer(raw, "head_dim", default.get("head_dim")),
        integer(raw, "intermediate_size", default["intermediate_size"]),
        integer(raw, "max_position_embeddings", default["max_position_embeddings"]),
        integer(raw, "vocab_size", default["vocab_size"]),
        choice(raw, activation, ACTIVATIONS, default.get(activation, "silu")),
    )


def layer_count(raw: dict[str, Any], key: str, default: int) -> int:
    """A number of layers, bounded before anything is made of it."""
    n_layers = integer(raw, key, default)
    if n_layers > MAX_LAYERS:
        raise ConfigError(f"config.json: {key}: expected at most {MAX_LAYERS}, got {n_layers}")
    return n_layers


def sizes_json(config: ModelConfig, activation: str = "hidden_act") -> dict[str, Any]:
    """config.json's entries for the sizes."""
    stack = config.stack
    layer = stack.layers[0]
    heads, position = layer.mixer, layer.position
    context = config.context_tokens
    return {
        "hidden_size": stack.width,
        "intermediate_size": layer.dense.hidden,
        "num_hidden_layers": len(stack.layers),
        "num_attention_heads": heads.n_heads,
        "num_key_value_heads": heads.n_kv_heads,
        "head_dim": heads.head_channels,
        activation: activation_name(layer.dense.activation),
        "max_position_embeddings": max_position_embeddings(position, context)
        if isinstance(position, Rope)
        else context,
        "attention_dropout": 0.0,
    }


def rope_of(config: ModelConfig, family: str) -> Rope:
    """The rotary position of the first layer. Raises ConfigError for a model that has none."""
    position = config.stack.layers[0].position
    if not isinstance(position, Rope):
        raise ConfigError(f"model: {family}'s folder format needs rotary positions")
    return position


def read_clip(raw: dict[str, Any]) -> float | None:
    """`clip_qkv`: where queries, keys and values are cut off, or null."""
    if raw.get("clip_qkv") is None:
        return None
    clip = number(raw, "clip_qkv", 0.0)
    if clip <= 0:
        raise ConfigError(f"config.json: clip_qkv: expected a number above 0 or null, got {clip}")
    return clip


def read_window(raw: dict[str, Any], default: int | None) -> int | None:
    """`sliding_window`: a number of positions, or null for none."""
    if raw.get("sliding_window", default) is None:
        return None
    window = integer(raw, "sliding_window", default)
    if window < 1:
        raise ConfigError(f"config.json: sliding_window: expected a number above 0 or null, got {window}")
    return window


def read_windows(raw: dict[str, Any], n_layers: int, window: int | None, sliding: Callable[[int], bool]) -> list[bool]:
    """Which layers have the window: `layer_types` where config.json has it, else the family's rule by layer index."""
    types = raw.get("layer_types")
    if types is None:
        found = [sliding(index) for index in range(n_layers)]
    else:
        if not isinstance(types, list) or len(types) != n_layers or any(kind not in (FULL, SLIDING) for kind in types):
            raise ConfigError(
                f"config.json: layer_types: expected {n_layers} of {FULL} or {SLIDING}, got {str(types)[:60]!r}"
            )
        found = [kind == SLIDING for kind in types]
    if any(found) and window is None:
        raise ConfigError("config.json: sliding_window: expected a number, as layer_types has sliding layers, got none")
    return found


def types_json(config: ModelConfig) -> list[str]:
    """`layer_types` of a model."""
    return [FULL if layer.window is None else SLIDING for layer in config.stack.layers]


def window_json(config: ModelConfig, unused: int | None = None) -> int | None:
    """The window of the layers that have one. `unused`: what stands in config.json where none has, for classes that
    want a number whatever their layers are."""
    return next((layer.window for layer in config.stack.layers if layer.window is not None), unused)


def decoder_config(
    raw: dict[str, Any], family: str, sizes: Sizes, stack: StackConfig, context: int, tie: bool = False, **more: Any
) -> ModelConfig:
    """The ModelConfig of a decoder-only family."""
    refuse(raw, "is_encoder_decoder", (False, None), "a decoder alone")
    return ModelConfig(
        family=family,
        vocab_size=sizes.vocab_size,
        context_tokens=context,
        decoder=stack,
        tie=flag(raw, "tie_word_embeddings", tie),
        special_ids=special_ids(raw, sizes.vocab_size),
        **more,
    )


def weight_table(
    config: ModelConfig,
    linears: dict[str, tuple[str, ...]] = LINEARS,
    norms: dict[str, str] = NORMS,
    block: str = "model.layers.{i}.",
    embedding: str = "model.embed_tokens",
    final: str = "model.norm",
    output: str = "lm_head",
    by_head: bool = False,
    transposed: bool = False,
    qk_norms: dict[str, str] = QK_NORMS,
) -> list[Weight]:
    """The name table of a decoder. `linears` names each of theirs with the one or several of ours that it holds side by
    side, or by key/value heads (`by_head`); `transposed`: theirs are [in, out]. Which biases exist, the config says."""
    stack = config.stack
    layer = stack.layers[0]
    table = [Weight(f"{embedding}.weight", ("embedding.weight",))]
    if stack.has_final_norm:
        table += norm_rows(final, "decoder.norm", stack.norm)
    if layer.mixer.qk_norm in ("head", "whole"):
        norms = {**norms, **qk_norms}
    for theirs, ours in norms.items():
        table += norm_rows(f"{block}{theirs}", f"{BLOCK}{ours}", stack.norm)
    for theirs, parts in linears.items():
        joined = "fused" if len(parts) > 1 else "same"
        how: Any = "interleaved" if by_head and len(parts) > 1 else joined
        if transposed:
            how = "fused_transposed" if len(parts) > 1 else "transposed"
        for end in ("weight", "bias") if biased(parts[0], layer) else ("weight",):
            names = tuple(f"{BLOCK}{part}.{end}" for part in parts)
            table.append(Weight(f"{block}{theirs}.{end}", names, how, heads=layer.mixer.n_kv_heads if by_head else 0))
    if not config.tie:
        table.append(Weight(f"{output}.weight", ("output.weight",)))
    return table


def in_pairs(table: list[Weight], config: ModelConfig) -> list[Weight]:
    """A name table whose queries and keys turn in pairs of neighbouring channels."""
    mixer = config.stack.layers[0].mixer
    channels = rope_of(config, config.family).channels or mixer.head_channels
    n_heads = {"q": mixer.n_heads, "k": mixer.n_kv_heads}
    rows = []
    for row in table:
        which, _, kind = row.theirs.split(".")[-2].partition("_")
        if which in n_heads and kind in ("proj", "norm"):
            how: How = row.how if kind == "norm" else "pairs"
            row = replace(row, how=how, heads=n_heads[which], channels=channels)
        rows.append(row)
    return rows


def own_norms(config: ModelConfig) -> dict[str, tuple[int, str]]:
    """By "q" and "k": how many heads have a norm of their own, and the name of its weight here, with the head as `{e}`;
    empty for a model without such."""
    mixer, n_of = config.stack.layers[0].mixer, {"q": "n_heads", "k": "n_kv_heads"}
    if mixer.qk_norm != "own":
        return {}
    return {q: (getattr(mixer, n), f"{BLOCK}attention.{q}_norm.heads.{{e}}") for q, n in n_of.items()}


def norm_rows(theirs: str, ours: str, norm: Norm) -> list[Weight]:
    ends = [end for end, there in (("weight", norm.weight), ("bias", norm.bias)) if there]
    return [Weight(f"{theirs}.{end}", (f"{ours}.{end}",)) for end in ends]


def biased(ours: str, layer: LayerConfig) -> bool:
    if ours.startswith("attention.qkv"):
        return layer.mixer.qkv_bias
    return layer.mixer.out_bias if ours == "attention.out" else layer.dense.bias


BASE = (
    "family", "preset", "width", "layers", "heads", "kv_heads", "head_channels", "hidden", "context_tokens",
    "vocab_size", "tie", "bias", "activation", "norm_eps", "task", "labels", "dropout", "init",
    "position", "attention", "stride", "summary", "block", "random_blocks", "rank", "norm", "norm_at",
)  # fmt: skip


def only_fields(shape: ShapeConfig, family: str, takes: tuple[str, ...]) -> None:
    """Raise ConfigError for a field that is set and that the family can't heed; BASE ones are always heeded."""
    default = ShapeConfig()
    if getattr(shape, "position", "") == "rope":  # another position or attention than the family's has its own fields
        takes = (*takes, "rope_theta", "rope_scaling", "rope_share")
    if getattr(shape, "attention", ""):
        takes = (*takes, "window")
    for name, value in vars(shape).items():
        if name not in BASE and name not in takes and value != getattr(default, name):
            raise ConfigError(f"model.{name}: expected none, got {str(value)[:60]}; {family} has no such part")


OUR_WORDS = {
    "hidden_size": "width", "num_hidden_layers": "layers", "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads", "head_dim": "head_channels", "intermediate_size": "hidden",
    "sliding_window": "window", "partial_rotary_factor": "rope_share", "factor": "rope_scaling.factor",
    "num_local_experts": "experts", "query_pre_attn_scalar": "score_channels",
}  # fmt: skip


def from_shape(
    family: str,
    read: Callable[[dict[str, Any]], ModelConfig],
    takes: tuple[str, ...] = ("rope_theta", "rope_scaling"),
    bias_keys: tuple[str, ...] = (),
    gated: bool = True,
    extra: Callable[[ShapeConfig], dict[str, Any]] = lambda shape: {},
    eps_key: str = "rms_norm_eps",
    eps: float = 1e-5,
    activation_key: str = "hidden_act",
    stretches: bool = True,
) -> Callable[[ShapeConfig], ModelConfig]:
    """The family's `build`: a shape spelled as config.json and read as such, so that there is one way to a config.

    `takes`: optional fields that it heeds; `bias_keys`: config.json's switches for biases; `extra`: further entries.
    `stretches`: linear and dynamic scaling make documents longer than max_position_embeddings.
    """

    def build(shape: ShapeConfig) -> ModelConfig:
        needed(shape, "width", "layers", "heads", "context_tokens", "vocab_size")
        only_fields(shape, family, takes)
        hidden = rounded_up(8 * shape.width / 3, 32) if gated else 4 * shape.width
        raw: dict[str, Any] = {
            "hidden_size": shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads or shape.heads,
            "head_dim": head_channels(shape),
            "intermediate_size": shape.hidden or hidden,
            "max_position_embeddings": shape.context_tokens,
            "vocab_size": shape.vocab_size,
            eps_key: shape.norm_eps or eps,
            **extra(shape),
        }
        if shape.tie is not None:
            raw["tie_word_embeddings"] = shape.tie
        if shape.activation:
            raw[activation_key] = activation_name(shape.activation)
        if shape.bias is not None:
            raw |= dict.fromkeys(bias_keys, shape.bias)
        try:
            config = read(raw | rope_entries(shape, stretches))
        except ConfigError as error:
            raise ConfigError(in_our_words(str(error))) from None
        check_heeded(shape, config, family)
        stack = replace(config.stack, dropout=shape.dropout)
        return replace(config, decoder=stack, init=shape.init, context_tokens=shape.context_tokens)

    return build


def in_our_words(message: str) -> str:
    """A message about a key of config.json as one about the field of the shape that it came from."""
    for key, name in OUR_WORDS.items():
        message = message.replace(f"config.json: {key}:", f"model.{name}:")
    return message


def rope_entries(shape: ShapeConfig, stretches: bool = True) -> dict[str, Any]:
    """config.json's rotary entries of a shape."""
    raw: dict[str, Any] = {}
    if shape.rope_theta:
        raw["rope_theta"] = shape.rope_theta
    if shape.rope_share:
        raw["partial_rotary_factor"] = shape.rope_share
    scaling = shape.rope_scaling
    if scaling is not None:
        stretched = stretches and scaling.kind in STRETCHED
        before = int(shape.context_tokens / scaling.factor) if stretched else shape.context_tokens
        scaling = replace(scaling, original_tokens=scaling.original_tokens or before)
        raw["rope_scaling"] = scaling_json(scaling)
        if stretched:
            raw["max_position_embeddings"] = scaling.original_tokens
    return raw


def check_heeded(shape: ShapeConfig, config: ModelConfig, family: str) -> None:
    """Raise ConfigError for a field that was set and is not in the config that was built."""
    layer = config.stack.layers[0]
    biases = {layer.mixer.qkv_bias, layer.mixer.out_bias, layer.dense.bias}
    for name, wanted, got in (
        ("activation", shape.activation or layer.dense.activation, layer.dense.activation),
        ("bias", biases if shape.bias is None else {shape.bias}, biases),
        ("hidden", shape.hidden or layer.dense.hidden, layer.dense.hidden),
        ("kv_heads", shape.kv_heads or layer.mixer.n_kv_heads, layer.mixer.n_kv_heads),
        ("head_channels", shape.head_channels or layer.mixer.head_channels, layer.mixer.head_channels),
        ("norm_eps", shape.norm_eps or config.stack.norm.eps, config.stack.norm.eps),
        ("tie", config.tie if shape.tie is None else shape.tie, config.tie),
    ):
        if wanted != got:
            raise ConfigError(f"model.{name}: expected the custom of {family}, got {getattr(shape, name)}; unset it")


def faithful(
    family: str, read: Callable[[dict[str, Any]], ModelConfig], write: Callable[[ModelConfig], dict[str, Any]]
) -> Callable[[ModelConfig], dict[str, Any]]:
    """`write`, refusing a model that `read` would not give back: a folder never holds less than the model."""

    def checked(config: ModelConfig) -> dict[str, Any]:
        raw = write(config)
        again = read({**raw, "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie})
        if not config.lm:  # without the output product its bias is gone too
            again = replace(again, output_bias=False)
        place = difference(bare(again), bare(config), "model")
        if place:
            raise ConfigError(f"{place}: {family}'s folder format has no place for this value; change it or the family")
        return raw

    return checked


def bare(config: ModelConfig) -> ModelConfig:
    """The config without what is of training alone."""
    stack = replace(config.stack, dropout=0.0)
    return replace(config, decoder=stack, init=InitConfig(), special_ids={}, lm=True, heads=())


def difference(one: Any, other: Any, at: str) -> str:
    """The place of the first difference of two configs; empty if they are equal."""
    if one == other:
        return ""
    if is_dataclass(one) and type(one) is type(other):
        for field in fields(one):
            place = difference(getattr(one, field.name), getattr(other, field.name), f"{at}.{field.name}")
            if place:
                return place
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        places = (difference(a, b, f"{at}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
        return next((place for place in places if place), "")
    return at
