"""What families of encoders share: the post-norm body of BERT, its keys in config.json, its rows of names.

Each family file says what differs. Source of the body: Devlin et al. 2018 (arXiv 1810.04805).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import InitConfig, ModelConfig, ShapeConfig, Transform
from fledge.model.families.family import (
    ACTIVATIONS,
    Weight,
    activation_name,
    choice,
    flag,
    integer,
    needed,
    number,
    refuse,
    special_ids,
)
from fledge.nn.config import MAX_LAYERS, Activation, Dense, Heads, Inputs, LayerConfig, Norm, Position, StackConfig

NORMAL = InitConfig("normal", 0.02)
ROLES = ("bos", "eos", "pad", "cls", "sep", "mask")
ENDS = ("weight", "bias")
POOLED_ACTIVATIONS: dict[str, Activation] = {**ACTIVATIONS, "tanh": "tanh"}


@dataclass(frozen=True)
class Size:
    """The numbers of a post-norm encoder. `rows` of the position table, `offset` of its first; `kinds` of segments."""

    width: int
    layers: int
    heads: int
    hidden: int
    activation: Activation
    eps: float
    rows: int
    kinds: int
    vocab_size: int
    offset: int = 0
    embedding_width: int = 0

    @property
    def context_tokens(self) -> int:
        return self.rows - self.offset


@dataclass(frozen=True)
class Keys:
    """config.json's words for the numbers of a Size; an empty one is not there."""

    width: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    hidden: str = "intermediate_size"
    activation: str = "hidden_act"
    eps: str = "layer_norm_eps"
    rows: str = "max_position_embeddings"
    kinds: str = "type_vocab_size"
    embedding_width: str = ""


def layer_of(size: Size, position: Position = None, **heads: Any) -> LayerConfig:
    """A block of BERT: biases everywhere, as many key/value heads as heads."""
    channels = size.width // size.heads
    mixer = Heads(size.heads, size.heads, channels, qkv_bias=True, out_bias=True, **heads)
    return LayerConfig(mixer, Dense(size.hidden, size.activation, bias=True), position)


def body(
    family: str,
    size: Size,
    layers: tuple[LayerConfig, ...] = (),
    transform: Activation | None = None,
    **more: Any,
) -> ModelConfig:
    """The model with its masked-LM output: product, activation, norm, then the embedding as output matrix.

    `layers` empty: all alike. `transform`: the activation before the output, the blocks' by default. Further words are
    fields of ModelConfig, and `shared`, `conv` and `dropout` of its stack.
    """
    norm = Norm("layer", size.eps, bias=True)
    inputs = Inputs(
        "learned" if size.rows else "", size.rows, size.offset, size.kinds, norm=True, width=size.embedding_width
    )
    of_stack = {name: more.pop(name) for name in ("shared", "dropout", "conv") if name in more}
    stack = StackConfig(
        size.width, layers or (layer_of(size),) * size.layers, norm, ("residual",), causal=False, inputs=inputs,
        **of_stack,
    )  # fmt: skip
    return ModelConfig(
        family=family,
        vocab_size=size.vocab_size,
        context_tokens=more.pop("context_tokens", size.context_tokens),
        decoder=None,
        encoder=stack,
        tie=more.pop("tie", True),
        output_bias=True,
        transform=Transform(transform or size.activation, norm),
        **more,
    )


def size_of_shape(
    shape: ShapeConfig, activation: Activation, eps: float, kinds: int, offset: int = 0, widened: bool = False
) -> Size:
    """The Size of a new model. Raises ConfigError for what such a model hasn't."""
    needed(shape, "width", "layers", "heads", "context_tokens", "vocab_size")
    for name in ("kv_heads", "head_channels", "rope_theta", "gated", "embedding_width"):
        if getattr(shape, name, None) and (name, widened) != ("embedding_width", True):
            raise ConfigError(f"model.{name}: a {shape.family} model has no such choice; leave it out")
    if shape.bias is False:
        raise ConfigError(f"model.bias: a {shape.family} model has biases; leave it out")
    check_heads(shape.width, shape.heads, "model")
    return Size(
        shape.width, shape.layers, shape.heads, shape.hidden or 4 * shape.width, shape.activation or activation,
        shape.norm_eps or eps, shape.context_tokens + offset, kinds, shape.vocab_size, offset, shape.embedding_width,
    )  # fmt: skip


def check_heads(width: int, heads: int, at: str) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(f"{at}: expected a width that is a multiple of the number of heads, got {width} and {heads}")


def size_of_file(raw: dict[str, Any], defaults: Size, keys: Keys, activation: str = "gelu") -> Size:
    """The Size that config.json states; what it leaves out is transformers' default. Raises ConfigError."""
    numbers = {
        name: integer(raw, key, getattr(defaults, name))
        for name in ("width", "layers", "heads", "hidden", "rows", "kinds", "embedding_width")
        if (key := getattr(keys, name))
    }
    if not 0 < numbers["layers"] <= MAX_LAYERS:
        raise ConfigError(f"config.json: {keys.layers}: expected 1..{MAX_LAYERS}, got {numbers['layers']}")
    check_heads(numbers["width"], numbers["heads"], "config.json")
    vocab_size = integer(raw, "vocab_size", defaults.vocab_size)
    eps = number(raw, keys.eps, defaults.eps) if keys.eps else defaults.eps
    return Size(
        numbers["width"], numbers["layers"], numbers["heads"], numbers["hidden"],
        choice(raw, keys.activation, ACTIVATIONS, activation), eps, numbers["rows"],
        numbers.get("kinds", defaults.kinds), vocab_size, defaults.offset, numbers.get("embedding_width", 0),
    )  # fmt: skip


def size_in_file(config: ModelConfig, keys: Keys, preferred: tuple[str, ...] = ("gelu",)) -> dict[str, Any]:
    """The numbers of a model in config.json's words. Raises ConfigError for a shape that the format can't say."""
    stack = config.stack
    layer, inputs = stack.layers[0], stack.inputs
    heads = layer.mixer
    if heads.n_kv_heads != heads.n_heads or heads.head_channels * heads.n_heads != stack.width:
        raise ConfigError(
            f"model: {config.family}'s folder format has one key/value head per head and width = heads x channels"
        )
    values = {
        "width": stack.width,
        "layers": len(stack.layers),
        "heads": heads.n_heads,
        "hidden": layer.dense.hidden,
        "activation": activation_name(layer.dense.activation, preferred),
        "eps": stack.norm.eps,
        "rows": inputs.rows,
        "kinds": inputs.kinds,
        "embedding_width": inputs.width or stack.width,
    }
    return {key: values[name] for name, key in vars(keys).items() if key}


def common(raw: dict[str, Any], vocab_size: int, roles: dict[str, int | None] | None = None) -> dict[str, Any]:
    """Fields of ModelConfig that every encoder's config.json states alike: tie and special ids."""
    return {"tie": flag(raw, "tie_word_embeddings", True), "special_ids": role_ids(raw, vocab_size, roles or {})}


def role_ids(raw: dict[str, Any], vocab_size: int, defaults: dict[str, int | None]) -> dict[str, int]:
    """Ids of ROLES in config.json, or their defaults; those outside the vocabulary are left out."""
    return special_ids({**{f"{role}_token_id": i for role, i in defaults.items()}, **raw}, vocab_size, ROLES)


def more_ids(config: ModelConfig) -> dict[str, int]:
    """The ids beyond bos, eos and pad, for config.json."""
    return {f"{role}_token_id": i for role, i in config.special_ids.items() if role in ROLES[3:]}


def pooled_activation(raw: dict[str, Any], key: str, default: str) -> Activation:
    """The activation of a pooler, which may be tanh too. Raises ConfigError."""
    return choice(raw, key, POOLED_ACTIVATIONS, default)


def pooled_name(config: ModelConfig, default: str) -> str:
    """transformers' name of the activation in a model's pooled head; `default` without such a head."""
    for head in config.heads:
        if head.hidden:
            return next(name for name, own in POOLED_ACTIVATIONS.items() if own == head.activation)
    return default


def only(raw: dict[str, Any], key: str, value: Any, why: str) -> None:
    """Raise ConfigError unless config.json leaves `key` out, unset, or at `value`."""
    refuse(raw, key, (value, None), why)


def no_decoder(raw: dict[str, Any]) -> None:
    """Raise ConfigError for an encoder's weights used as a decoder."""
    for key in ("is_decoder", "add_cross_attention"):
        if raw.get(key):
            raise ConfigError(f"config.json: {key}: {str(raw[key])[:40]} is not supported (this family is an encoder)")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError(
            f"config.json: position_embedding_type: {str(raw['position_embedding_type'])[:40]!r} is not supported "
            "(positions are learned and absolute)"
        )


def linears(theirs: str, ours: str, names: dict[str, str], ends: tuple[str, ...] = ENDS) -> list[Weight]:
    """A row for each end (weight, bias) of each module: their name -> ours."""
    return [Weight(f"{theirs}{a}.{end}", (f"{ours}{b}.{end}",)) for a, b in names.items() for end in ends]


def embeddings(prefix: str, config: ModelConfig) -> list[Weight]:
    """Rows of the token, position and kind tables and their norm, under `prefix`."""
    ours, theirs, inputs = "encoder.inputs.", f"{prefix}embeddings.", config.stack.inputs
    table = [Weight(f"{theirs}word_embeddings.weight", ("embedding.weight",))]
    if inputs.positions:
        table.append(Weight(f"{theirs}position_embeddings.weight", (f"{ours}positions.weight",)))
    if inputs.kinds:
        table.append(Weight(f"{theirs}token_type_embeddings.weight", (f"{ours}kinds.weight",)))
    return table + linears(theirs, ours, {"LayerNorm": "norm"})


BERT_BLOCK = {
    "attention.self.query": "attention.qkv.q",
    "attention.self.key": "attention.qkv.k",
    "attention.self.value": "attention.qkv.v",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norms.residual",
    "intermediate.dense": "ffn.inward.up",
    "output.dense": "ffn.down",
    "output.LayerNorm": "ffn_norms.residual",
}


def output(dense: str, norm: str, bias: str, decoder: str, config: ModelConfig) -> list[Weight]:
    """Rows of the masked-LM output: the product and norm before it, its bias, and untied its matrix. transformers then
    keeps the bias twice and reads the one beside the matrix."""
    table = linears("", "", {dense: "transform.dense", norm: "transform.norm"})
    if config.tie:
        return [*table, Weight(bias, ("output_bias",))]
    twice = [Weight(name, ("output_bias",), optional=True) for name in dict.fromkeys((bias, f"{decoder}.bias"))]
    return [*table, *twice, Weight(f"{decoder}.weight", ("output.weight",))]
