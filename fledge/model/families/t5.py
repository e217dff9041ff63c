"""T5 (Raffel et al. 2019) and T5 v1.1 / FLAN-T5: encoder and decoder, bucketed relative positions, pre-norm RMSNorm,
unscaled scores, no biases. v1.1 gates its feed-forward and unties its output."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.family import (
    ACTIVATIONS,
    Family,
    Weight,
    activation_name,
    choice,
    flag,
    head_channels,
    integer,
    needed,
    number,
    refuse,
    special_ids,
)
from fledge.model.families.task import Head, Task
from fledge.nn.config import MAX_LAYERS, Buckets, Dense, Heads, LayerConfig, Norm, StackConfig

ENCODERS = ("T5EncoderModel", "T5ForTokenClassification")  # mT5's too, with an M before it
CONTEXT = 512  # tokens of pre-training; config.json's n_positions, where it is given


def build(shape: ShapeConfig) -> ModelConfig:
    needed(shape, "width", "layers", "heads", "context_tokens", "vocab_size")
    gated = bool(shape.gated)
    heads = Heads(
        shape.heads, shape.kv_heads or shape.heads, head_channels(shape), bool(shape.bias), bool(shape.bias), 1.0
    )
    activation = shape.activation or ("gelu_tanh" if gated else "relu")
    layer = LayerConfig(heads, Dense(shape.hidden or 4 * shape.width, activation, gated, bool(shape.bias)), Buckets())
    return assembled(
        layer,
        (shape.encoder_layers or shape.layers, shape.layers),
        shape.width,
        shape.norm_eps or 1e-6,
        shape.dropout,
        family="t5",
        vocab_size=shape.vocab_size,
        context_tokens=shape.context_tokens,
        tie=not gated if shape.tie is None else shape.tie,
        init=shape.init,
    )


def assembled(
    layer: LayerConfig, n_layers: tuple[int, int], width: int, eps: float, dropout: float = 0.0, **more: Any
) -> ModelConfig:
    """Encoder and decoder of equal blocks. A tied output reads states that are scaled by width ** -0.5."""
    encoder = StackConfig(width, (layer,) * n_layers[0], Norm("rms", eps), causal=False, dropout=dropout)
    decoder = StackConfig(
        width, (layer,) * n_layers[1], Norm("rms", eps), dropout=dropout, cross=layer.mixer
    )  # fmt: skip
    more.setdefault("logit_scale", width**-0.5 if more["tie"] and width else 1.0)
    return ModelConfig(decoder=decoder, encoder=encoder, **more)


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "is_decoder", (False, None), "T5 is an encoder with a decoder")
    names = raw.get("architectures")
    if not (isinstance(names, list) and names and str(names[0]).endswith(ENCODERS)):
        refuse(raw, "is_encoder_decoder", (True, None), "T5 is an encoder with a decoder")
    activation, gated = feed_forward(raw)
    width, vocab_size = integer(raw, "d_model", 512), integer(raw, "vocab_size", 32128)
    n_heads = integer(raw, "num_heads", 8)
    n_encoder = integer(raw, "num_layers", 6)
    n_decoder = integer(raw, "num_decoder_layers", n_encoder)
    for key, n in (("num_layers", n_encoder), ("num_decoder_layers", n_decoder)):
        if n > MAX_LAYERS:
            raise ConfigError(f"config.json: {key}: expected at most {MAX_LAYERS}, got {n}")
    position = Buckets(
        integer(raw, "relative_attention_num_buckets", 32), integer(raw, "relative_attention_max_distance", 128)
    )
    layer = LayerConfig(
        Heads(n_heads, n_heads, integer(raw, "d_kv", 64), scale=1.0),
        Dense(integer(raw, "d_ff", 2048), activation, gated),
        position,
    )
    tie = flag(raw, "tie_word_embeddings", True)
    scaled = flag(raw, "scale_decoder_outputs", tie)  # transformers 5's spelling; 4 goes by the tie
    ids = special_ids({"pad_token_id": 0, "eos_token_id": 1, **raw}, vocab_size)
    return assembled(
        layer,
        (n_encoder, n_decoder),
        width,
        number(raw, "layer_norm_epsilon", 1e-6),
        family="t5",
        vocab_size=vocab_size,
        context_tokens=integer(raw, "n_positions", CONTEXT),
        tie=tie,
        logit_scale=width**-0.5 if scaled and width else 1.0,
        special_ids=ids | started(raw, vocab_size),
    )


def started(raw: dict[str, Any], vocab_size: int) -> dict[str, int]:
    """The id that a decoder's input begins with, as a special id."""
    ids = special_ids(raw, vocab_size, ("decoder_start",))
    return {"start": ids["decoder_start"]} if ids else {}


def feed_forward(raw: dict[str, Any]) -> tuple[Any, bool]:
    """Activation and whether there is a gate, of `feed_forward_proj`: "relu", "gated-gelu"…"""
    name = raw.get("feed_forward_proj", "relu")
    if not isinstance(name, str):
        raise ConfigError(f"config.json: feed_forward_proj: expected a text such as gated-gelu, got {str(name)[:40]!r}")
    gated, plain = name.startswith("gated-"), name.removeprefix("gated-")
    # "gated-gelu" is the tanh form by a rule of transformers, unlike "gelu" and other gated ones
    plain = "gelu_new" if name == "gated-gelu" else plain
    activation = choice({"feed_forward_proj": plain}, "feed_forward_proj", ACTIVATIONS, "relu")
    refuse(raw, "dense_act_fn", (plain, None), f"feed_forward_proj is {name[:40]!r}")
    refuse(raw, "is_gated_act", (gated, None), f"feed_forward_proj is {name[:40]!r}")
    return activation, gated


def write(config: ModelConfig) -> dict[str, Any]:
    encoder, decoder = config.encoder, config.stack
    assert encoder is not None
    layer = decoder.layers[0]
    heads, position = layer.mixer, layer.position
    if not isinstance(position, Buckets):
        raise ConfigError("model: T5's folder format needs positions in buckets; set model.position=buckets")
    if heads.n_kv_heads != heads.n_heads or heads.scale != 1.0 or heads.qkv_bias:
        raise ConfigError(
            "model: T5's folder format has one key/value head per head, unscaled scores and no biases; "
            "leave model.kv_heads and model.bias unset"
        )
    gate = "gated-" if layer.dense.gated else ""
    activation = activation_name(layer.dense.activation, ("gelu_new",))
    if gate and activation == "gelu":  # transformers reads gated-gelu as the tanh form
        raise ConfigError(
            "model.activation: expected gelu_tanh, silu or relu behind T5's gate, got gelu; "
            "set model.activation=gelu_tanh"
        )
    return {
        "is_encoder_decoder": config.decoder is not None,
        "d_model": decoder.width,
        "d_kv": heads.head_channels,
        "d_ff": layer.dense.hidden,
        "num_layers": len(encoder.layers),
        "num_decoder_layers": len(decoder.layers),
        "num_heads": heads.n_heads,
        "n_positions": config.context_tokens,
        "relative_attention_num_buckets": position.n_buckets,
        "relative_attention_max_distance": position.max_distance,
        "feed_forward_proj": "gated-gelu" if (gate, activation) == ("gated-", "gelu_new") else gate + activation,
        "layer_norm_epsilon": decoder.norm.eps,
        "scale_decoder_outputs": config.logit_scale != 1.0,
        "dropout_rate": 0.0,
        "decoder_start_token_id": config.special_ids.get("start", config.special_ids.get("pad")),
    }


def weights(config: ModelConfig) -> list[Weight]:
    table = [Weight("shared.weight", ("embedding.weight",))]
    for stack in config.stacks:
        table.append(Weight(f"{stack}.final_layer_norm.weight", (f"{stack}.norm.weight",)))
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table.append(Weight(first, (f"{stack}.bias.weight",)))
        table += block_weights(config, stack)
    if not config.tie:
        table.append(Weight("lm_head.weight", ("output.weight",)))
    return table


def block_weights(config: ModelConfig, stack: Any) -> list[Weight]:
    ours, theirs = f"{stack}.layers.{{i}}.", f"{stack}.block.{{i}}.layer."
    last = 2 if stack == "decoder" else 1
    names = {f"0.SelfAttention.{x}": f"attention.qkv.{x}" for x in "qkv"}
    names |= {"0.SelfAttention.o": "attention.out", "0.layer_norm": "attention_norms.before"}
    if stack == "decoder":
        names |= {"1.EncDecAttention.q": "cross.q", "1.EncDecAttention.o": "cross.out"}
        names |= {f"1.EncDecAttention.{x}": f"cross.kv.{x}" for x in "kv"}
        names["1.layer_norm"] = "cross_norms.before"
    inward = {"wi_0": "gate", "wi_1": "up"} if config.stack.layers[0].dense.gated else {"wi": "up"}
    names |= {f"{last}.DenseReluDense.{x}": f"ffn.inward.{y}" for x, y in inward.items()}
    names |= {f"{last}.DenseReluDense.wo": "ffn.down", f"{last}.layer_norm": "ffn_norms.before"}
    return [Weight(f"{theirs}{x}.weight", (f"{ours}{y}.weight",), stack=stack) for x, y in names.items()]


def preset(width: int, hidden: int, layers: int, heads: int, head_channels: int = 64, **more: Any) -> ShapeConfig:
    return ShapeConfig(
        "t5", width=width, hidden=hidden, layers=layers, heads=heads, head_channels=head_channels,
        context_tokens=CONTEXT, vocab_size=32128, **more,
    )  # fmt: skip


GATED = {
    "small": preset(512, 1024, 8, 6, gated=True),
    "base": preset(768, 2048, 12, 12, gated=True),
    "large": preset(1024, 2816, 24, 16, gated=True),
    "xl": preset(2048, 5120, 24, 32, gated=True),
    "xxl": preset(4096, 10240, 24, 64, gated=True),
}

CLASSIFIER = Head("sequence", "last", None, "classification_head.out_proj", "classification_head.dense")
TASKS = (
    Task("lm", "T5ForConditionalGeneration", lm=True),
    Task("base", "T5Model", base=True),
    Task("encoder", "T5EncoderModel", base=True, encoder_only=True),
    Task("sequence", "T5ForSequenceClassification", heads=(CLASSIFIER,), prefix="transformer."),
    Task(
        "token", "T5ForTokenClassification", heads=(Head("token", "each", None, "classifier"),), prefix="transformer.",
        encoder_only=True,
    ),
    Task("span", "T5ForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
)  # fmt: skip

ALIASES = {
    "d_model": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "d_kv": "head_dim",
}  # fmt: skip

FAMILY = Family(
    name="t5",
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    build=build,
    read=read,
    write=write,
    weights=weights,
    aliases=ALIASES,
    tasks=TASKS,
    # of the first decoder block, in files of the first release: read by nobody
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
    copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
    presets={
        "t5-small": preset(512, 2048, 6, 8),
        "t5-base": preset(768, 3072, 12, 12),
        "t5-large": preset(1024, 4096, 24, 16),
        "t5-3b": preset(1024, 16384, 24, 32, 128),
        "t5-11b": preset(1024, 65536, 24, 128, 128),
        **{f"t5-v1.1-{size}": shape for size, shape in GATED.items()},
        **{f"flan-t5-{size}": shape for size, shape in GATED.items()},
    },
)
