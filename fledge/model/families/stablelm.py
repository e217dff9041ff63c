"""StableLM (Bellagente et al. 2024, arXiv 2402.17834): LLaMA with LayerNorms and a quarter of each head's channels
turned; in StableLM 2 12B a norm of its own for each head."""

from __future__ import annotations

from typing import Any

from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.decoder import (
    NORMS,
    decoder_config,
    faithful,
    from_shape,
    own_norms,
    read_sizes,
    rope_of,
    sizes_json,
    weight_table,
)
from fledge.model.families.family import Family, Weight, flag, number, refuse, switched_on
from fledge.model.families.rotary import longest, read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, Heads, LayerConfig, Norm, StackConfig

DEFAULT = {
    "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "intermediate_size": 6912, "max_position_embeddings": 4096, "vocab_size": 50304,
}  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    sizes = read_sizes({**raw, "head_dim": None}, DEFAULT)
    refuse(raw, "head_dim", (sizes.channels, None), "width = heads x channels in this family")
    rope = read_rope(raw, sizes.channels, sizes.context, share=0.25)
    qk_norm: Any = "own" if switched_on(raw, "qk_layernorm") else ""
    heads = Heads(sizes.heads, sizes.kv_heads, sizes.channels, flag(raw, "use_qkv_bias", False), qk_norm=qk_norm)
    layer = LayerConfig(heads, Dense(sizes.hidden, sizes.activation, True), rope)
    norm = Norm("layer", number(raw, "layer_norm_eps", 1e-5), bias=True)
    parallel = "one_norm" if flag(raw, "use_parallel_residual", False) else ""
    stack = StackConfig(sizes.width, (layer,) * sizes.layers, norm, parallel=parallel)  # type: ignore[arg-type]
    return decoder_config(raw, "stablelm", sizes, stack, longest(rope, sizes.context))


def write(config: ModelConfig) -> dict[str, Any]:
    layer, rope = config.stack.layers[0], rope_of(config, "stablelm")
    return {
        **sizes_json(config),
        "layer_norm_eps": config.stack.norm.eps,
        "use_qkv_bias": layer.mixer.qkv_bias,
        "use_parallel_residual": config.stack.parallel == "one_norm",
        "qk_layernorm": layer.mixer.qk_norm == "own",
        **rope_json(rope, layer.mixer.head_channels, share=True),
    }


def weights(config: ModelConfig) -> list[Weight]:
    one = {"input_layernorm": NORMS["input_layernorm"]}
    table = weight_table(config, norms=one if config.stack.parallel else NORMS)
    for which, (n_heads, ours) in own_norms(config).items():
        theirs = f"model.layers.{{i}}.self_attn.{which}_layernorm.norms.{{e}}.weight"
        table.append(Weight(theirs, (ours,), experts=n_heads))
    return table


def preset(width: int, hidden: int, layers: int, vocab_size: int) -> ShapeConfig:
    return ShapeConfig(
        "stablelm", width=width, hidden=hidden, layers=layers, heads=32, context_tokens=4096, vocab_size=vocab_size
    )


FAMILY = Family(
    name="stablelm",
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    tasks=decoder_tasks("StableLmForCausalLM", ("sequence", "token")),
    build=from_shape("stablelm", read, ("rope_theta", "rope_scaling", "rope_share"), eps_key="layer_norm_eps"),
    read=read,
    write=faithful("stablelm", read, write),
    weights=weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    # StableLM 2 has biases on queries, keys and values alone (1.6B) or norms of each head's own (12B): open its folder
    presets={"stablelm-3b": preset(2560, 6912, 32, 50304)},
)
