"""The architectures of llama.cpp that are read and written here, as data: metadata keys and what each fixes.

A file says little of what an architecture computes: activation, kind of norm, order of rotary channels and which layers
have a window stand in llama.cpp's code. Here each architecture has a family whose config.json, filled from the
metadata, describes the same. Imports no torch.
Source: gguf-py's constants (keys and names), llama.cpp's src/models (what each computes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
}
BLOCK = "decoder.layers."


@dataclass(frozen=True)
class Architecture:
    """`name`: llama.cpp's. `family`: ours whose config.json describes it; `also`: families that are written as it.

    `keys`: metadata key without the name -> config.json's key; those of `optional` may be missing. `flags`: config.json
    key -> the tensor that is there where it is true. `implied`: further entries of config.json, from those read.
    `fused`: queries, keys and values are one matrix. `paired`: queries and keys turn channel pairs (c, c + 1).
    `whole_norms`: norms hold 1 + what the family's do. `tied`: the output is the embedding always. `square`: width =
    heads x channels.
    """

    name: str
    family: str
    keys: dict[str, str]
    also: tuple[str, ...] = ()
    optional: tuple[str, ...] = OPTIONAL
    flags: dict[str, str] = field(default_factory=dict)
    implied: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: {}
    fused: bool = False
    paired: bool = False
    whole_norms: bool = False
    tied: bool = False
    square: bool = False


def gemma2_entries(raw: dict[str, Any]) -> dict[str, Any]:
    """Scores are divided by the root of a head's channels; in the size of 46 layers, of width / heads."""
    heads, width = integer(raw, "num_attention_heads"), integer(raw, "hidden_size")
    share = width // heads if heads else 0
    return {"query_pre_attn_scalar": share if integer(raw, "num_hidden_layers") == 46 else raw.get("head_dim", share)}


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture(
            "llama",
            "llama",
            RMS,
            also=("mistral",),
            flags={"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_up.bias"},
            paired=True,
        ),
        Architecture("qwen2", "qwen2", RMS, square=True),
        Architecture("qwen3", "qwen3", RMS),
        Architecture("gemma", "gemma", RMS, whole_norms=True, tied=True),
        Architecture(
            "gemma2",
            "gemma2",
            {
                **RMS,
                "attention.sliding_window": "sliding_window",
                "attn_logit_softcapping": "attn_logit_softcapping",
                "final_logit_softcapping": "final_logit_softcapping",
            },
            optional=(
                *OPTIONAL,
                "attention.sliding_window",
                "attn_logit_softcapping",
                "final_logit_softcapping",
            ),
            implied=gemma2_entries,
            whole_norms=True,
            tied=True,
        ),
        Architecture("gpt2", "gpt2", GPT2, optional=(), fused=True, square=True),
    )
}


def architecture_of(name: Any, at: str) -> Architecture:
    """The architecture that a file names. Raises ConfigError for one that is not read."""
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"{at}: general.architecture: expected one of {known}, got {name!r:.40}")
    return ARCHITECTURES[name]


def written_as(family: str) -> Architecture:
    """The architecture that a family is written as. Raises ConfigError for a family that llama.cpp has no equal of, or
    none that was compared with it."""
    for one in ARCHITECTURES.values():
        if family in (one.family, *one.also):
            return one
    known = ", ".join(sorted({name for one in ARCHITECTURES.values() for name in (one.family, *one.also)}))
    raise ConfigError(f"gguf: expected a model of one of the families {known}; got {family}, which is not written")


def gguf_name(ours: str, fused: bool) -> str:
    """`decoder.layers.3.attention.qkv.q.weight` as `blk.3.attn_q.weight`, or as `blk.3.attn_qkv.weight` where it is
    `fused` with others. Raises ConfigError for a part that llama.cpp has no tensor for."""
    stem, _, end = ours.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{end}"
    index, _, part = stem.removeprefix(BLOCK).partition(".")
    if not stem.startswith(BLOCK) or part not in INSIDE:
        raise ConfigError(f"gguf: {ours}: no tensor of llama.cpp's holds this part")
    theirs = "attn_qkv" if fused and part.startswith("attention.qkv.") else INSIDE[part]
    return f"blk.{index}.{theirs}.{end}"
