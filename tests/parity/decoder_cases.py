"""The decoder families' tiny models: a config class of transformers, its arguments, and the knobs that must show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.parity.reference import VOCAB, randomised

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64, **IDS,
}  # fmt: skip
OLD_SIZES = {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 64, "vocab_size": VOCAB, **IDS}
NEOX = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
FALCON = {key: value for key, value in NEOX.items() if key != "intermediate_size"} | {"num_attention_heads": 6}
OPT = {"hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCAB,
       "max_position_embeddings": 64, "word_embed_proj_dim": 48, **IDS}  # fmt: skip
MOE = {**SIZES, "moe_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 3}
GEMMA = {**SIZES, "head_dim": 16}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
FULL = ["full_attention"] * 3
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
OLMO3 = {
    "full_attention": {**YARN, "rope_theta": 500000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
}
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0], "rope_theta": 10000.0,
    "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 9.0], "original_max_position_embeddings": 16,
}  # fmt: skip


def rope(**entries: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", **entries}}


@dataclass(frozen=True)
class Case:
    """`config`: the class; `sizes` and `more`: its arguments; `knobs`: changes of config.json that logits must show;
    `kernel`: transformers' attention."""

    config: type
    sizes: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    knobs: tuple[dict[str, Any], ...] = ()
    kernel: str = "eager"

    def model(self) -> transformers.PreTrainedModel:
        torch.manual_seed(7)
        config = self.config(**{**self.sizes, **self.more})
        config._attn_implementation = self.kernel
        return randomised(transformers.AutoModelForCausalLM.from_config(config))


RMS = ({"rms_norm_eps": 0.1}, rope(rope_theta=100.0))
CASES: dict[str, Case] = {
    "llama": Case(transformers.LlamaConfig, SIZES, {}, (*RMS, {"hidden_act": "gelu"})),
    "llama-linear": Case(
        transformers.LlamaConfig, SIZES, {"rope_parameters": LINEAR}, ({"rope_parameters": {**LINEAR, "factor": 2.0}},)
    ),
    "llama-dynamic": Case(transformers.LlamaConfig, SIZES, {"rope_parameters": {**LINEAR, "rope_type": "dynamic"}}),
    "llama-yarn": Case(
        transformers.LlamaConfig,
        SIZES,
        {"rope_parameters": YARN},
        tuple(
            {"rope_parameters": {**YARN, **change}}
            for change in (
                {"factor": 2.0},
                {"original_max_position_embeddings": 16},
                {"attention_factor": 1.5},
                {"beta_fast": 2.0},
                {"beta_slow": 0.1},
                {"truncate": False},
                {"mscale": 0.5, "mscale_all_dim": 1.0},
            )
        ),
    ),  # fmt: skip
    "llama-llama3": Case(
        transformers.LlamaConfig,
        SIZES,
        {"rope_parameters": LLAMA3},
        tuple(
            {"rope_parameters": {**LLAMA3, **change}}
            for change in (
                {"factor": 2.0},
                {"original_max_position_embeddings": 32},
                {"low_freq_factor": 2.0},
                {"high_freq_factor": 8.0},
            )
        ),
    ),  # fmt: skip
    "llama-wide": Case(
        transformers.LlamaConfig,
        SIZES,
        {"head_dim": 20, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": Case(
        transformers.MistralConfig,
        SIZES,
        {"sliding_window": 6},
        (*RMS, {"sliding_window": 5}, {"sliding_window": None}),
    ),
    "mistral-whole": Case(transformers.MistralConfig, SIZES, {"sliding_window": None}, ({"sliding_window": 20},)),
    "qwen2": Case(transformers.Qwen2Config, SIZES, {}, RMS),
    "qwen2-window": Case(
        transformers.Qwen2Config,
        SIZES,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, "tie_word_embeddings": True},
        ({"use_sliding_window": False, "layer_types": FULL}, {"sliding_window": 3}, {"layer_types": LAYERS}),
    ),
    "qwen3": Case(transformers.Qwen3Config, SIZES, {"head_dim": 20}, RMS),
    "qwen3-biased": Case(
        transformers.Qwen3Config,
        SIZES,
        {
            "attention_bias": True,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
        },
        ({"sliding_window": 3}, {"max_window_layers": 2, "layer_types": None}),
    ),  # fmt: skip
    "gemma": Case(transformers.GemmaConfig, GEMMA, {}, (*RMS, {"hidden_act": "silu", "hidden_activation": "silu"})),
    "gemma-multi-query": Case(
        transformers.GemmaConfig, {**GEMMA, "num_key_value_heads": 1}, {"tie_word_embeddings": False}
    ),
    "gemma2": Case(
        transformers.Gemma2Config,
        GEMMA,
        {"sliding_window": 6, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0},
        (
            *RMS,
            {"sliding_window": 5},
            {"query_pre_attn_scalar": 16},
            {"attn_logit_softcapping": 6.0},
            {"attn_logit_softcapping": None},
            {"final_logit_softcapping": 20.0},
            {"final_logit_softcapping": None},
            {"layer_types": FULL},
            {"hidden_activation": "silu"},
        ),
    ),
    "gemma3": Case(
        transformers.Gemma3TextConfig,
        GEMMA,
        {
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "layer_types": LAYERS,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        (
            {"rms_norm_eps": 0.1},
            {"sliding_window": 5},
            {"query_pre_attn_scalar": 16},
            {"layer_types": FULL},
            {"final_logit_softcapping": 20.0},
            {"hidden_activation": "silu"},
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1000000.0}}},
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                }
            },
        ),
    ),  # fmt: skip
    "gpt1": Case(transformers.OpenAIGPTConfig, OLD_SIZES, {}, ({"afn": "relu"}, {"layer_norm_epsilon": 0.1})),
    "gpt-neox": Case(
        transformers.GPTNeoXConfig,
        NEOX,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        (
            {"rotary_pct": 1.0, "rope_parameters": {"rope_type": "default"}},
            {"use_parallel_residual": False},
            {"layer_norm_eps": 0.1},
            {"hidden_act": "gelu_new"},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
        ),
    ),  # fmt: skip
    "gpt-neox-serial": Case(
        transformers.GPTNeoXConfig,
        NEOX,
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 1.0},
        },
    ),  # fmt: skip
    "mixtral": Case(
        transformers.MixtralConfig,
        SIZES,
        {"num_local_experts": 5, "num_experts_per_tok": 2},
        (*RMS, {"num_experts_per_tok": 1}, {"sliding_window": 5}),
    ),
    "mixtral-window": Case(
        transformers.MixtralConfig, SIZES, {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 6}
    ),
    "phi3": Case(
        transformers.Phi3Config,
        SIZES,
        {"sliding_window": 6},
        (*RMS, {"sliding_window": 5}, {"hidden_act": "gelu"}),
    ),
    "phi3-long": Case(
        transformers.Phi3Config,
        SIZES,
        {"rope_parameters": LONG, "original_max_position_embeddings": 16, "tie_word_embeddings": True},
        (
            {"rope_parameters": {**LONG, "long_factor": [2.0] * 6}},
            {"max_position_embeddings": 128},
            {"original_max_position_embeddings": 64},
        ),
    ),
    "phi3-part": Case(
        transformers.Phi3Config,
        SIZES,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},),
    ),
    "bloom": Case(
        transformers.BloomConfig,
        {"hidden_size": 48, "n_head": 6, "n_layer": 3, "vocab_size": VOCAB, **IDS},
        {},
        ({"layer_norm_epsilon": 0.1},),
    ),
    "olmo2": Case(transformers.Olmo2Config, SIZES, {}, RMS),
    "olmo2-biased": Case(transformers.Olmo2Config, SIZES, {"attention_bias": True, "tie_word_embeddings": True}),
    "olmo": Case(transformers.OlmoConfig, SIZES, {}, (RMS[1], {"hidden_act": "gelu"})),
    "olmo-biased": Case(transformers.OlmoConfig, SIZES, {"attention_bias": True, "tie_word_embeddings": True}),
    "olmo-clipped": Case(
        transformers.OlmoConfig,
        SIZES,
        {"clip_qkv": 1.5, "attention_bias": True},
        ({"clip_qkv": 2.0}, {"clip_qkv": None}),
    ),
    "stablelm": Case(
        transformers.StableLmConfig,
        SIZES,
        {"use_qkv_bias": True, "rope_parameters": HALF},
        ({"layer_norm_eps": 0.1}, {"use_parallel_residual": False, "rope_parameters": {**HALF, "rope_theta": 100.0}}),
    ),
    "stablelm-parallel": Case(
        transformers.StableLmConfig, SIZES, {"use_parallel_residual": True, "rope_parameters": HALF}
    ),
    "stablelm-normed": Case(
        transformers.StableLmConfig,
        SIZES,
        {"qk_layernorm": True, "use_parallel_residual": True, "rope_parameters": HALF},
        ({"layer_norm_eps": 0.1},),
    ),
    "phi": Case(
        transformers.PhiConfig,
        SIZES,
        {"rope_parameters": HALF},
        ({"layer_norm_eps": 0.1}, {"hidden_act": "relu"}, {"rope_parameters": {**HALF, "partial_rotary_factor": 1.0}}),
    ),
    "phi-normed": Case(
        transformers.PhiConfig, SIZES, {"qk_layernorm": True, "rope_parameters": HALF}, ({"layer_norm_eps": 0.1},)
    ),
    "gptj": Case(
        transformers.GPTJConfig,
        {**OLD_SIZES, "rotary_dim": 8},
        {},
        ({"layer_norm_epsilon": 0.1}, {"rotary_dim": 6}, {"activation_function": "relu"}),
    ),
    "gptj-whole": Case(transformers.GPTJConfig, {**OLD_SIZES, "rotary_dim": 12}, {"n_inner": 80}),
    "starcoder2": Case(
        transformers.Starcoder2Config,
        SIZES,
        {"sliding_window": 6},
        (RMS[1], {"norm_epsilon": 0.1}, {"sliding_window": 5}, {"hidden_act": "relu"}),
    ),
    "starcoder2-unbiased": Case(
        transformers.Starcoder2Config, SIZES, {"use_bias": False, "tie_word_embeddings": False}
    ),
    "falcon": Case(
        transformers.FalconConfig,
        FALCON,
        {},
        ({"layer_norm_epsilon": 0.1}, {"activation": "relu"}, rope(rope_theta=100.0)),
    ),
    "falcon-grouped": Case(
        transformers.FalconConfig,
        FALCON,
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 80, "tie_word_embeddings": False},
    ),
    "falcon-one-norm": Case(
        transformers.FalconConfig,
        FALCON,
        {"new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1, "bias": True},
    ),
    "falcon-alibi": Case(
        transformers.FalconConfig,
        {**FALCON, "max_position_embeddings": 512},
        {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        ({"alibi": False},),
        kernel="sdpa",  # its eager attention adds ALiBi twice
    ),
    "opt": Case(transformers.OPTConfig, OPT, {}, ({"activation_function": "gelu"},)),
    "opt-after": Case(
        transformers.OPTConfig,
        OPT,
        {"do_layer_norm_before": False, "enable_bias": False, "tie_word_embeddings": False},
    ),
    "opt-narrow": Case(
        transformers.OPTConfig,
        {**OPT, "word_embed_proj_dim": 20},
        {"do_layer_norm_before": False},
        ({"activation_function": "gelu"},),
    ),
    "opt-narrow-untied": Case(
        transformers.OPTConfig, {**OPT, "word_embed_proj_dim": 64}, {"tie_word_embeddings": False}
    ),
    "opt-plain-norms": Case(
        transformers.OPTConfig, OPT, {"layer_norm_elementwise_affine": False, "_remove_final_layer_norm": True}
    ),
    "qwen3-moe": Case(
        transformers.Qwen3MoeConfig,
        MOE,
        {"head_dim": 20, "norm_topk_prob": True},
        (
            *RMS,
            {"num_experts_per_tok": 1},
            {"norm_topk_prob": False},
            {"use_sliding_window": True, "sliding_window": 5},
        ),
    ),
    "qwen3-moe-window": Case(
        transformers.Qwen3MoeConfig, MOE, {"use_sliding_window": True, "sliding_window": 6, "attention_bias": True}
    ),
    "qwen3-moe-dense-first": Case(
        transformers.Qwen3MoeConfig, MOE, {"mlp_only_layers": [0], "norm_topk_prob": True}, ({"rms_norm_eps": 0.1},)
    ),
    "qwen3-moe-step": Case(transformers.Qwen3MoeConfig, MOE, {"decoder_sparse_step": 2}),
    "olmoe": Case(
        transformers.OlmoeConfig,
        {**SIZES, "num_experts": 6, "num_experts_per_tok": 3},
        {},
        (*RMS, {"num_experts_per_tok": 1}, {"norm_topk_prob": True}),
    ),
    "olmoe-clipped": Case(
        transformers.OlmoeConfig,
        {**SIZES, "num_experts": 6, "num_experts_per_tok": 3},
        {"clip_qkv": 0.25},
        ({"clip_qkv": 0.5}, {"clip_qkv": None}),
    ),
    "smollm3": Case(
        transformers.SmolLM3Config,
        SIZES,
        {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": False},
        (*RMS, {"no_rope_layers": [1, 1, 1]}, {"no_rope_layers": [0, 1, 1]}),
    ),
    "smollm3-biased": Case(
        transformers.SmolLM3Config, SIZES, {"no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True}
    ),
    "gpt-bigcode": Case(
        transformers.GPTBigCodeConfig, OLD_SIZES, {}, ({"layer_norm_epsilon": 0.1}, {"activation_function": "relu"})
    ),
    "gpt-bigcode-heads": Case(
        transformers.GPTBigCodeConfig,
        OLD_SIZES,
        {"multi_query": False, "n_inner": 80, "tie_word_embeddings": False},
    ),
    "cohere": Case(
        transformers.CohereConfig,
        SIZES,
        {},
        ({"layer_norm_eps": 0.1}, {"logit_scale": 0.5}, RMS[1], {"hidden_act": "gelu"}),
    ),
    "cohere-biased": Case(
        transformers.CohereConfig, SIZES, {"attention_bias": True, "tie_word_embeddings": False, "logit_scale": 0.3}
    ),
    "cohere-normed": Case(
        transformers.CohereConfig, SIZES, {"use_qk_norm": True, "num_key_value_heads": 4}, ({"layer_norm_eps": 0.1},)
    ),
    "cohere-normed-grouped": Case(transformers.CohereConfig, {**SIZES, "head_dim": 20}, {"use_qk_norm": True}),
    "glm4": Case(
        transformers.Glm4Config,
        {**SIZES, "head_dim": 12},
        {"rope_parameters": {**HALF, "partial_rotary_factor": 0.5}},
        (RMS[0], {"rope_parameters": {**HALF, "partial_rotary_factor": 1.0}}, {"hidden_act": "gelu"}),
    ),
    "glm4-unbiased": Case(
        transformers.Glm4Config, {**SIZES, "head_dim": 20}, {"attention_bias": False, "tie_word_embeddings": True}
    ),
    "olmo3": Case(
        transformers.Olmo3Config,
        SIZES,
        {"sliding_window": 6, "layer_types": LAYERS, "rope_parameters": OLMO3},
        (
            RMS[0],
            {"sliding_window": 5},
            {"layer_types": FULL},
            {"rope_parameters": {**OLMO3, "full_attention": {"rope_type": "default", "rope_theta": 500.0}}},
            {"rope_parameters": {**OLMO3, "sliding_attention": {"rope_type": "default", "rope_theta": 77.0}}},
        ),
    ),
    "gpt2": Case(
        transformers.GPT2Config, OLD_SIZES, {}, ({"layer_norm_epsilon": 0.1}, {"activation_function": "gelu"})
    ),
    "gpt2-inverse": Case(
        transformers.GPT2Config,
        OLD_SIZES,
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        ({"scale_attn_by_inverse_layer_idx": False},),
    ),
    "gpt2-untied": Case(
        transformers.GPT2Config,
        OLD_SIZES,
        {"activation_function": "relu", "n_inner": 80, "tie_word_embeddings": False},
    ),
}


ALWAYS = ("llama-llama3", "mistral", "gemma2", "gpt-neox", "mixtral", "phi3-long", "bloom")


def sampled(names: Iterable[str], always: tuple[str, ...] = ALWAYS) -> list[Any]:
    """Names as parameters of a test, all but `always` marked slow."""
    return [pytest.param(name, marks=() if name in always else pytest.mark.slow) for name in names]


def changed(folder: Path, change: dict[str, Any]) -> None:
    """Change keys of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
