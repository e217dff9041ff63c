"""OPT (Zhang et al. 2022, arXiv 2205.01068), GPT-3 in the open: learned positions from row 2, ReLU, biases, tied
output; in 350M an embedding that is narrower than the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import HeadConfig, ModelConfig, ShapeConfig, Transform
from fledge.model.families.decoder import decoder_config, faithful, from_shape, read_sizes, weight_table
from fledge.model.families.family import Family, Weight, activation_name, flag, integer, refuse
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import MAX_WIDTH, Dense, Heads, Inputs, LayerConfig, Norm, StackConfig

OFFSET = 2  # the table's first two rows were once kept for padding
HEADS_READ = "a narrow embedding's heads read states of its width, behind a product that is the output's here"
EPS = 1e-5  # not in config.json
IDS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
DEFAULT = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "max_position_embeddings": 2048, "vocab_size": 50272, "activation_function": "relu",
}  # fmt: skip
LINEARS: dict[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("attention.qkv.q",),
    "self_attn.k_proj": ("attention.qkv.k",),
    "self_attn.v_proj": ("attention.qkv.v",),
    "self_attn.out_proj": ("attention.out",),
    "fc1": ("ffn.inward.up",),
    "fc2": ("ffn.down",),
}
NORMS = {"self_attn_layer_norm": "attention_norms", "final_layer_norm": "ffn_norms"}


def read(raw: dict[str, Any]) -> ModelConfig:
    own = {"head_dim": None, "num_key_value_heads": None, "intermediate_size": raw.get("ffn_dim", 3072)}
    sizes = read_sizes({**raw, **own}, DEFAULT, "activation_function")
    narrow = integer({"word_embed_proj_dim": sizes.width} | given_width(raw), "word_embed_proj_dim")
    if not 0 < narrow <= MAX_WIDTH:
        raise ConfigError(f"config.json: word_embed_proj_dim: expected a number in 1..{MAX_WIDTH}, got {narrow}")
    narrow = 0 if narrow == sizes.width else narrow
    if narrow:
        refuse(raw, "architectures", (["OPTForCausalLM"], "OPTForCausalLM", [], None), HEADS_READ)
    bias, affine = flag(raw, "enable_bias", True), flag(raw, "layer_norm_elementwise_affine", True)
    before = flag(raw, "do_layer_norm_before", True)
    heads = Heads(sizes.heads, sizes.heads, sizes.channels, bias, bias)
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, bias=bias))
    inputs = Inputs("learned", sizes.context + OFFSET, OFFSET)
    if narrow:
        inputs = replace(inputs, width=narrow, width_bias=False, widen_first=True)
    stack = StackConfig(
        sizes.width,
        (layer,) * sizes.layers,
        Norm("layer", EPS, bias=affine, weight=affine),
        ("before",) if before else ("residual",),
        inputs=inputs,
        final_norm=before and not flag(raw, "_remove_final_layer_norm", False),
    )
    transform = Transform(None, None, bias=False) if narrow else None
    return decoder_config({**IDS, **raw}, "opt", sizes, stack, sizes.context, tie=True, transform=transform)


def given_width(raw: dict[str, Any]) -> dict[str, Any]:
    """word_embed_proj_dim where config.json states it."""
    return {key: value for key, value in raw.items() if key == "word_embed_proj_dim" and value is not None}


def wide_alone(head: HeadConfig, config: ModelConfig, raw: dict[str, Any]) -> HeadConfig:
    if config.stack.inputs.width:
        raise ConfigError(f"model: expected no head {head.name!r} ({HEADS_READ}), got one; use another size")
    return head


def write(config: ModelConfig) -> dict[str, Any]:
    stack, layer = config.stack, config.stack.layers[0]
    before = stack.norm_at == ("before",)
    return {
        "hidden_size": stack.width,
        "word_embed_proj_dim": config.embedding_width,
        "num_hidden_layers": len(stack.layers),
        "num_attention_heads": layer.mixer.n_heads,
        "ffn_dim": layer.dense.hidden,
        "max_position_embeddings": stack.inputs.rows - OFFSET,
        "activation_function": activation_name(layer.dense.activation),
        "enable_bias": layer.mixer.qkv_bias,
        "layer_norm_elementwise_affine": stack.norm.weight,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not stack.has_final_norm,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
    }


def weights(config: ModelConfig) -> list[Weight]:
    slot = config.stack.norm_at[0]
    table = weight_table(
        config,
        LINEARS,
        {theirs: f"{ours}.{slot}" for theirs, ours in NORMS.items()},
        block="model.decoder.layers.{i}.",
        embedding="model.decoder.embed_tokens",
        final="model.decoder.final_layer_norm",
    )
    own = {"embed_positions": "decoder.inputs.positions"}
    if config.stack.inputs.width:
        own |= {"project_in": "decoder.inputs.widen", "project_out": "transform.dense"}
    return [*table, *(Weight(f"model.decoder.{theirs}.weight", (f"{ours}.weight",)) for theirs, ours in own.items())]


def extra(shape: ShapeConfig) -> dict[str, Any]:
    if shape.norm_eps not in (0.0, EPS):
        raise ConfigError(f"model.norm_eps: expected {EPS} in OPT, whose config.json does not say it; unset it")
    narrow = shape.embedding_width not in (0, shape.width)
    widths = {"word_embed_proj_dim": shape.embedding_width or shape.width, "ffn_dim": shape.hidden or 4 * shape.width}
    return {**widths, "do_layer_norm_before": not narrow}  # as in the one that was published


def preset(width: int, layers: int, heads: int, embedding_width: int = 0) -> ShapeConfig:
    return ShapeConfig(
        "opt", width=width, layers=layers, heads=heads, context_tokens=2048, vocab_size=50272,
        embedding_width=embedding_width,
    )  # fmt: skip


FAMILY = Family(
    name="opt",
    model_type="opt",
    architecture="OPTForCausalLM",
    tasks=decoder_tasks("OPTForCausalLM", ("sequence", "span")),
    build=from_shape(
        "opt",
        read,
        ("embedding_width",),
        ("enable_bias",),
        gated=False,
        extra=extra,
        eps_key="_",
        activation_key="activation_function",
    ),
    read=read,
    write=faithful("opt", read, write),
    weights=weights,
    prefix="model.",
    adjust_head=wide_alone,
    presets={
        "opt-125m": preset(768, 12, 12),
        "opt-350m": preset(1024, 24, 16, 512),
        "opt-1.3b": preset(2048, 24, 32),
        "opt-2.7b": preset(2560, 32, 32),
        "opt-6.7b": preset(4096, 32, 32),
        "opt-13b": preset(5120, 40, 40),
        "opt-30b": preset(7168, 48, 56),
        "opt-66b": preset(9216, 64, 72),
        "opt-175b": preset(12288, 96, 96),
    },
)
