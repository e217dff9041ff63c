"""The architectures of llama.cpp that are read and written here, as data: metadata keys and what each fixes.

A file says little of what an architecture computes: activation, kind of norm, order of rotary channels and which layers
have a window stand in llama.cpp's code. Here each architecture has a family whose config.json, filled from the
metadata, describes the same. Imports no torch.
Source: gguf-py's constants (keys and names), llama.cpp's src/models (what each computes).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fledge.errors import ConfigError
from fledge.model.families.family import integer

SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
ROTARY = {
    **SIZES,
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
RMS = {**ROTARY, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.freq_base")
LAYER = {**ROTARY, "attention.layer_norm_epsilon": "layer_norm_eps"}
WINDOW = {"attention.sliding_window": "sliding_window"}
FINAL_CAP = {"final_logit_softcapping": "final_logit_softcapping"}
CAPS = {**FINAL_CAP, "attn_logit_softcapping": "attn_logit_softcapping"}
EXPERTS = {"expert_used_count": "num_experts_per_tok"}
GPT2 = {
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "context_length": "n_positions",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
CHECKED = ("attention.value_length", "rope.dimension_count", "vocab_size", "rope.scaling.finetuned")  # or unused

OUTSIDE = {
    "embedding": "token_embd",
    "decoder.inputs.positions": "position_embd",
    "decoder.norm": "output_norm",
    "output": "output",
}
INSIDE = {
    "attention_norms.before": "attn_norm",
    "attention_norms.after": "post_attention_norm",
    "attention.qkv.q": "attn_q",
    "attention.qkv.k": "attn_k",
    "attention.qkv.v": "attn_v",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.out": "attn_output",
    "ffn_norms.before": "ffn_norm",
    "ffn_norms.after": "post_ffw_norm",
    "ffn.inward.gate": "ffn_gate",
    "ffn.inward.up": "ffn_up",
    "ffn.down": "ffn_down",
    "ffn.router": "ffn_gate_inp",
    "ffn.experts.inward.gate": "ffn_gate_exps",
    "ffn.experts.inward.up": "ffn_up_exps",
    "ffn.experts.down": "ffn_down_exps",
}
ONE_QKV = {**INSIDE, **{f"attention.qkv.{name}": "attn_qkv" for name in "qkv"}}
ONE_QKV_AND_UP = {**ONE_QKV, "ffn.inward.gate": "ffn_up"}
BLOCK = "decoder.layers."
EXPERT = re.compile(r"(?<=^ffn\.experts\.)\d+\.")


@dataclass(frozen=True)
class Architecture:
    """`name`: llama.cpp's. `family`: ours whose config.json describes it; `also`: families that are written as it.

    `keys`: metadata key without the name -> config.json's key; those of `optional` may be missing. `flags`: config.json
    key -> the tensor that is there where it is true. `implied`: further entries of config.json, from those read.
    `parts`: our part of a block -> its tensor; parts of one tensor lie side by side in it. `paired`: queries and keys
    turn channel pairs (c, c + 1). `partial`: some channels may not turn. `factors`: there may be a tensor of rotary
    factors. `stretches`: linear scaling makes documents longer. `whole_norms`: norms hold 1 + what the family's do.
    `tie`: whether the output is the embedding (empty: the file says). `square`: width = heads x channels.
    """

    name: str
    family: str
    keys: dict[str, str]
    also: tuple[str, ...] = ()
    optional: tuple[str, ...] = OPTIONAL
    flags: dict[str, str] = field(default_factory=dict)
    implied: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: {}
    parts: dict[str, str] = field(default_factory=lambda: INSIDE)
    paired: bool = False
    partial: bool = False
    factors: bool = False
    stretches: bool = True
    whole_norms: bool = False
    tie: Literal["", "always", "never"] = ""
    square: bool = False

    @property
    def experts(self) -> bool:
        return "expert_count" in self.keys


def by_width(n_layers: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Gemma's scores are divided by the root of a head's channels; in the size of `n_layers`, of width / heads."""

    def entries(raw: dict[str, Any]) -> dict[str, Any]:
        heads, width = integer(raw, "num_attention_heads"), integer(raw, "hidden_size")
        share = width // heads if heads else 0
        whole = integer(raw, "num_hidden_layers") == n_layers
        return {"query_pre_attn_scalar": share if whole else raw.get("head_dim", share)}

    return entries


ARCHITECTURES = (
    Architecture(
        "llama",
        "llama",
        RMS,
        also=("mistral",),
        flags={"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_up.bias"},
        paired=True,
        factors=True,
    ),
    Architecture(
        "llama",
        "mixtral",
        {**RMS, **EXPERTS, "expert_count": "num_local_experts"},
        implied=lambda raw: {"rope_theta": raw.get("rope_theta", 10000.0)},
        paired=True,
        factors=True,
    ),
    Architecture("qwen2", "qwen2", RMS, square=True),
    Architecture("qwen3", "qwen3", RMS),
    Architecture(
        "qwen3moe",
        "qwen3_moe",
        {**RMS, **EXPERTS, "expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size"},
        implied=lambda raw: {"norm_topk_prob": True},
    ),
    Architecture("smollm3", "smollm3", RMS, paired=True),
    Architecture("olmo2", "olmo2", RMS, tie="never", square=True),
    Architecture("phi3", "phi3", RMS, parts=ONE_QKV_AND_UP, partial=True, square=True),
    Architecture(
        "stablelm",
        "stablelm",
        {**LAYER, "use_parallel_residual": "use_parallel_residual"},
        optional=(*OPTIONAL, "use_parallel_residual"),
        flags={"use_qkv_bias": "blk.0.attn_q.bias"},
        partial=True,
        tie="never",
        square=True,
    ),
    Architecture("gemma", "gemma", RMS, whole_norms=True, tie="always"),
    Architecture(
        "gemma2",
        "gemma2",
        {**RMS, **WINDOW, **CAPS},
        optional=(*OPTIONAL, *WINDOW, *CAPS),
        implied=by_width(46),
        whole_norms=True,
        tie="always",
    ),
    Architecture(
        "gemma3",
        "gemma3",
        {**RMS, **WINDOW, "rope.freq_base_swa": "rope_local_base_freq", **FINAL_CAP},
        optional=(*OPTIONAL, "rope.freq_base_swa", *FINAL_CAP),
        implied=by_width(62),
        stretches=False,
        whole_norms=True,
    ),
    Architecture("gpt2", "gpt2", GPT2, optional=(), parts=ONE_QKV, square=True),
)


def architecture_of(metadata: dict[str, Any], at: str) -> Architecture:
    """The architecture that a file's metadata name. Raises ConfigError for one that is not read."""
    name = metadata.get("general.architecture")
    named = [one for one in ARCHITECTURES if one.name == name]
    if not named:
        known = ", ".join(dict.fromkeys(one.name for one in ARCHITECTURES))
        raise ConfigError(f"{at}: general.architecture: expected one of {known}, got {name!r:.40}")
    count = metadata.get(f"{name}.expert_count")
    experts = isinstance(count, int) and count > 0
    return next((one for one in named if one.experts == experts), named[0])


def written_as(family: str) -> Architecture:
    """The architecture that a family is written as. Raises ConfigError for a family that llama.cpp has no equal of, or
    none that was compared with it."""
    for one in ARCHITECTURES:
        if family in (one.family, *one.also):
            return one
    known = ", ".join(sorted({name for one in ARCHITECTURES for name in (one.family, *one.also)}))
    raise ConfigError(f"gguf: expected a model of one of the families {known}; got {family}, which is not written")


def gguf_name(ours: str, parts: dict[str, str]) -> str:
    """`decoder.layers.3.attention.qkv.q.weight` as `blk.3.attn_q.weight`; experts have one name together. Raises
    ConfigError for a part that llama.cpp has no tensor for."""
    stem, _, end = ours.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{end}"
    index, _, part = stem.removeprefix(BLOCK).partition(".")
    part = EXPERT.sub("", part)
    if not stem.startswith(BLOCK) or part not in parts:
        raise ConfigError(f"gguf: {ours}: no tensor of llama.cpp's holds this part")
    return f"blk.{index}.{parts[part]}.{end}"
