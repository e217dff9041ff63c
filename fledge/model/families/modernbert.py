"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): rotary positions, pre-norm without biases, gated feed-forward,
windows in two layers of three, and a second rotary base where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import HeadConfig, ModelConfig, ShapeConfig, Take, Transform
from fledge.model.families.encoder import (
    NORMAL,
    Keys,
    Size,
    common,
    more_ids,
    only,
    pooled_activation,
    pooled_name,
    size_in_file,
    size_of_file,
)
from fledge.model.families.family import Family, Weight, choice, flag, head_channels, integer, needed
from fledge.model.families.rotary import read_rope
from fledge.model.families.task import Head, Task
from fledge.nn.config import Dense, Heads, Inputs, LayerConfig, Norm, Rope, StackConfig

EVERY, WINDOW = 3, 128
THETA = {"full_attention": 160000.0, "sliding_attention": 10000.0}
OLD_THETA = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
KEYS = Keys(activation="hidden_activation", eps="norm_eps", kinds="")
IDS: dict[str, int | None] = {"bos": 50281, "eos": 50282, "pad": 50283, "cls": 50281, "sep": 50282}
DEFAULTS = Size(768, 22, 12, 1152, "gelu", 1e-5, 8192, 0, 50368)


def head(name: str, take: Take, labels: int | None = None) -> Head:
    return Head(name, take, labels, "classifier", "head.dense", "head.norm", activation="gelu", dense_bias=False)


TASKS = (
    Task("lm", "ModernBertForMaskedLM", lm=True),
    Task("base", "ModernBertModel", base=True),
    Task("sequence", "ModernBertForSequenceClassification", heads=(head("sequence", "first"),)),
    Task("token", "ModernBertForTokenClassification", heads=(head("token", "each"),)),
    Task("span", "ModernBertForQuestionAnswering", heads=(head("span", "each", 2),)),
    Task("choice", "ModernBertForMultipleChoice", heads=(head("choice", "first", 1),)),
)


def model(
    size: Size, kinds: list[str], ropes: dict[str, Rope], window: int, biases: dict[str, bool], **more: Any
) -> ModelConfig:
    """`kinds`: each layer's, full_attention or sliding_attention. `biases`: of attention, mlp, norm, decoder."""
    heads = Heads(
        size.heads, size.heads, size.width // size.heads, qkv_bias=biases["attention"], out_bias=biases["attention"]
    )
    dense = Dense(size.hidden, size.activation, True, biases["mlp"])
    layers = tuple(
        LayerConfig(heads, dense, ropes[kind], None if kind == "full_attention" else window, input_norm=i > 0)
        for i, kind in enumerate(kinds)
    )
    norm = Norm("layer", size.eps, bias=biases["norm"])
    dropout = more.pop("dropout", 0.0)
    stack = StackConfig(size.width, layers, norm, causal=False, dropout=dropout, inputs=Inputs(norm=True))
    transform = Transform(more.pop("activation", "gelu"), norm, biases["classifier"])
    return ModelConfig(
        "modernbert", size.vocab_size, size.rows, None, stack, output_bias=biases["decoder"], transform=transform,
        **more,
    )  # fmt: skip


def build(shape: ShapeConfig) -> ModelConfig:
    needed(shape, "width", "layers", "heads", "context_tokens", "vocab_size")
    if head_channels(shape) * shape.heads != shape.width or shape.kv_heads not in (0, shape.heads):
        raise ConfigError("model: a modernbert model has width = heads x channels and as many key/value heads as heads")
    size = Size(
        shape.width, shape.layers, shape.heads, shape.hidden or 3 * shape.width // 2, shape.activation or "gelu",
        shape.norm_eps or 1e-5, shape.context_tokens, 0, shape.vocab_size,
    )  # fmt: skip
    every = shape.window_every or EVERY
    kinds = ["sliding_attention" if i % every else "full_attention" for i in range(size.layers)]
    ropes = {kind: Rope(shape.rope_theta or theta) for kind, theta in THETA.items()}
    biases = dict.fromkeys(("attention", "mlp", "norm", "classifier"), bool(shape.bias)) | {"decoder": True}
    return model(
        size, kinds, ropes, shape.window or WINDOW, biases, tie=shape.tie is not False, init=shape.init,
        dropout=shape.dropout, special_ids={role: i for role, i in IDS.items() if i and i < size.vocab_size},
    )  # fmt: skip


def kinds_of(raw: dict[str, Any], layers: int) -> list[str]:
    """Each layer's kind: a list, or every so many layers one that sees everything. Raises ConfigError."""
    kinds = raw.get("layer_types")
    if kinds is None:
        every = integer(raw, "global_attn_every_n_layers", EVERY)
        if every < 1:
            raise ConfigError("config.json: global_attn_every_n_layers: expected at least 1, got 0")
        return ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in THETA for kind in map(str, kinds)):
        raise ConfigError(
            f"config.json: layer_types: expected {layers} of {' and '.join(THETA)}, got {str(kinds)[:60]!r}"
        )
    return list(kinds)


def ropes_of(raw: dict[str, Any], channels: int, context: int) -> dict[str, Rope]:
    """The rotary position of each kind of layer, in either spelling. Raises ConfigError."""
    only(raw, "rope_scaling", {}, "the two kinds of layers have rotary bases of their own")
    groups = raw.get("rope_parameters") or {}
    if not isinstance(groups, dict) or any(key not in THETA for key in groups):
        raise ConfigError(
            f"config.json: rope_parameters: expected {' and '.join(THETA)}, got {str(groups)[:60]!r}"
        )  # fmt: skip
    ropes = {}
    for kind, default in THETA.items():
        group = groups.get(kind) or {}
        if not isinstance(group, dict):
            raise ConfigError(f"config.json: rope_parameters: expected a mapping for {kind}, got {str(group)[:40]!r}")
        own = {"rope_parameters": group, "rope_theta": raw.get(OLD_THETA[kind])}
        ropes[kind] = read_rope(own, channels, context, default)
        if ropes[kind].scaling is not None:
            raise ConfigError(f"config.json: rope_parameters: {kind}: scaled frequencies are not supported here")
    return ropes


def read(raw: dict[str, Any]) -> ModelConfig:
    size = size_of_file(raw, DEFAULTS, KEYS)
    only(raw, "head_dim", size.width // size.heads, "heads divide the width")
    channels, window = size.width // size.heads, integer(raw, "local_attention", WINDOW)
    biases = {
        "attention": flag(raw, "attention_bias", False),
        "mlp": flag(raw, "mlp_bias", False),
        "norm": flag(raw, "norm_bias", False),
        "classifier": flag(raw, "classifier_bias", False),
        "decoder": flag(raw, "decoder_bias", True),
    }
    activation = pooled_activation(raw, "classifier_activation", "gelu")
    ropes = ropes_of(raw, channels, size.rows)
    ids = common(raw, size.vocab_size, IDS)
    return model(size, kinds_of(raw, size.layers), ropes, window, biases, activation=activation, **ids)


def adjust_head(own: HeadConfig, config: ModelConfig, raw: dict[str, Any]) -> HeadConfig:
    pooling = choice(raw, "classifier_pooling", {"cls": "first", "mean": "mean"}, "cls")
    return replace(
        own,
        take=own.take if own.take == "each" else pooling,
        activation=pooled_activation(raw, "classifier_activation", "gelu"),
        hidden_bias=flag(raw, "classifier_bias", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    stack, transform = config.stack, config.transform
    layer = stack.layers[0]
    ropes, windows = dict(THETA), {one.window for one in stack.layers if one.window is not None}
    kinds = ["full_attention" if one.window is None else "sliding_attention" for one in stack.layers]
    for kind, one in zip(kinds, stack.layers, strict=True):
        if not isinstance(one.position, Rope) or len(windows) > 1:
            raise ConfigError("model: ModernBERT's folder format has rotary positions and one window")
        ropes[kind] = one.position.theta
    heads = [own for own in config.heads if own.hidden]
    bias = transform.bias if transform else heads[0].hidden_bias if heads else False
    names = {"relu": "relu", "gelu": "gelu", "tanh": "tanh", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}
    activation = names[transform.activation or "gelu"] if transform else pooled_name(config, "gelu")
    return {
        **size_in_file(config, KEYS),
        "max_position_embeddings": config.context_tokens,
        "layer_types": kinds,
        "local_attention": next(iter(windows), WINDOW),
        "rope_parameters": {kind: {"rope_theta": theta, "rope_type": "default"} for kind, theta in ropes.items()},
        **{OLD_THETA[kind]: theta for kind, theta in ropes.items()},
        "attention_bias": layer.mixer.qkv_bias,
        "mlp_bias": layer.dense.bias,
        "norm_bias": stack.norm.bias,
        "decoder_bias": config.output_bias or not config.lm,
        "classifier_bias": bias,
        "classifier_activation": activation,
        "classifier_pooling": "mean" if any(own.take == "mean" for own in heads) else "cls",
        **more_ids(config),
    }


def weights(config: ModelConfig) -> list[Weight]:
    block, theirs = "encoder.layers.{i}.", "model.layers.{i}."
    stack = config.stack
    layer = stack.layers[0]
    norm_ends = ("weight", "bias") if stack.norm.bias else ("weight",)
    table = [Weight("model.embeddings.tok_embeddings.weight", ("embedding.weight",))]
    later = tuple(range(1, stack.n_blocks))
    for end in norm_ends:
        table += [
            Weight(f"model.embeddings.norm.{end}", (f"encoder.inputs.norm.{end}",)),
            Weight(f"{theirs}attn_norm.{end}", (f"{block}attention_norms.before.{end}",), blocks=later),
            Weight(f"{theirs}mlp_norm.{end}", (f"{block}ffn_norms.before.{end}",)),
            Weight(f"model.final_norm.{end}", (f"encoder.norm.{end}",)),
            Weight(f"head.norm.{end}", (f"transform.norm.{end}",)),
        ]
    for end in ("weight", "bias") if layer.mixer.qkv_bias else ("weight",):
        qkv = tuple(f"{block}attention.qkv.{name}.{end}" for name in "qkv")
        table.append(Weight(f"{theirs}attn.Wqkv.{end}", qkv, "fused"))
        table.append(Weight(f"{theirs}attn.Wo.{end}", (f"{block}attention.out.{end}",)))
    for end in ("weight", "bias") if layer.dense.bias else ("weight",):
        pair = (f"{block}ffn.inward.gate.{end}", f"{block}ffn.inward.up.{end}")
        table.append(Weight(f"{theirs}mlp.Wi.{end}", pair, "fused"))
        table.append(Weight(f"{theirs}mlp.Wo.{end}", (f"{block}ffn.down.{end}",)))
    table.append(Weight("head.dense.weight", ("transform.dense.weight",)))
    if config.transform is not None and config.transform.bias:
        table.append(Weight("head.dense.bias", ("transform.dense.bias",)))
    if config.output_bias:
        table.append(Weight("decoder.bias", ("output_bias",)))
    if not config.tie:
        table.append(Weight("decoder.weight", ("output.weight",)))
    return table


def preset(width: int, hidden: int, layers: int, heads: int) -> ShapeConfig:
    return ShapeConfig(
        "modernbert", width=width, hidden=hidden, layers=layers, heads=heads, context_tokens=8192, vocab_size=50368,
        init=NORMAL,
    )  # fmt: skip


FAMILY = Family(
    name="modernbert",
    model_type="modernbert",
    architecture="ModernBertForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="model.",
    ignored=(".inv_freq",),
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    tasks=TASKS,
    adjust_head=adjust_head,
    presets={"modernbert-base": preset(768, 1152, 22, 12), "modernbert-large": preset(1024, 2624, 28, 16)},
)
