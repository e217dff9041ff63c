"""adapter_config.json: what PEFT says of an adapter, read strictly, and written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fledge.config import read_json
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.tune.base import CONFIG
from fledge.tune.config import MAX_RANK, MAX_TARGETS, TuneConfig, check_pattern

MAX_BYTES = 2 << 20
READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias",
    "init_lora_weights", "base_model_name_or_path", "target_modules", "feedforward_modules",
    "modules_to_save",
}  # fmt: skip
VIRTUAL = ("PROMPT_TUNING", "PREFIX_TUNING")
READ_OF_VIRTUAL = {
    "peft_type", "base_model_name_or_path", "num_virtual_tokens", "token_dim", "num_transformer_submodules",
    "num_attention_heads", "num_layers", "prefix_projection", "encoder_hidden_size", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "init_weights", "modules_to_save",
}  # fmt: skip
BOTTLENECK = "BOTTLENECK"  # which PEFT has none of: a folder of this package's own
READ_OF_BOTTLENECK = {
    "peft_type", "base_model_name_or_path", "target_modules", "bottleneck_size", "activation", "modules_to_save",
}  # fmt: skip
KINDS = ("LORA", "IA3", *VIRTUAL, BOTTLENECK)
IGNORED = {
    "task_type", "inference_mode", "auto_mapping", "revision", "peft_version", "exclude_modules", "layers_to_transform",
    "layers_pattern", "fan_in_fan_out", "megatron_core", "eva_config", "qalora_group_size",
    "init_ia3_weights", "runtime_config",
}  # fmt: skip
INITS = (True, False, None, "gaussian", "orthogonal", "eva")


def read_peft_config(folder: Path) -> dict[str, Any]:
    """What a folder's adapter_config.json says. Raises ConfigError for what is not computed here: a key that is not
    known and says something changes how an adapter is computed, or may."""
    raw = read_json(folder / CONFIG, MAX_BYTES, unique=True)
    if not isinstance(raw, dict):
        raise ConfigError(f"{CONFIG}: expected a mapping, got {type(raw).__name__}; download it again")
    kind = raw.get("peft_type")
    if kind not in KINDS:
        raise ConfigError(f"{CONFIG}: peft_type: expected one of {', '.join(KINDS)}, got {str(kind)[:40]!r}")
    if raw.get("bias", "none") != "none":
        raise ConfigError(f"{CONFIG}: bias: expected none, got {str(raw['bias'])[:40]!r}: trained biases are not read")
    if raw.get("init_lora_weights", True) not in INITS:
        raise ConfigError(
            f"{CONFIG}: init_lora_weights: expected one that leaves the base as it is, got "
            f"{str(raw['init_lora_weights'])[:40]!r}; save the adapter converted to plain LoRA"
        )
    known = READ_OF_VIRTUAL if kind in VIRTUAL else READ_OF_BOTTLENECK if kind == BOTTLENECK else READ
    for key, value in raw.items():
        if key not in known | IGNORED and value not in (None, False, [], {}, ""):
            raise ConfigError(
                f"{CONFIG}: {key[:40]!r}: {str(value)[:40]!r} is not known here, and may change the answers"
            )
    return raw


def tune_config_of(raw: dict[str, Any]) -> TuneConfig:
    """The method of an adapter_config.json; which modules, its tensors say. Raises ConfigError."""
    if raw["peft_type"] == "IA3":
        return TuneConfig("ia3")
    if raw["peft_type"] == BOTTLENECK:
        size, activation = raw.get("bottleneck_size"), raw.get("activation")
        if type(size) is not int or not 1 <= size <= MAX_RANK:
            raise ConfigError(f"{CONFIG}: bottleneck_size: expected 1 to {MAX_RANK}, got {str(size)[:40]!r}")
        if activation not in ("gelu", "relu", "silu"):
            raise ConfigError(f"{CONFIG}: activation: expected gelu, relu or silu, got {str(activation)[:40]!r}")
        return TuneConfig("houlsby", bottleneck=size, activation=activation)
    ranks = pattern_of(raw, "rank_pattern")
    if not all(rank.is_integer() for rank in ranks.values()):
        raise ConfigError(f"{CONFIG}: rank_pattern: expected whole numbers, got {str(ranks)[:60]}")
    for key in ("use_rslora", "use_dora"):
        if raw.get(key) not in (None, True, False):
            raise ConfigError(f"{CONFIG}: {key}: expected true or false, got {str(raw[key])[:40]!r}")
    rank = number_of(raw, "r", 8)
    if rank != int(rank) or not 1 <= rank <= MAX_RANK:
        raise ConfigError(f"{CONFIG}: r: expected 1 to {MAX_RANK}, got {rank}")
    return TuneConfig(
        "lora", int(rank), number_of(raw, "lora_alpha", 8.0), rank_pattern={k: int(v) for k, v in ranks.items()},
        alpha_pattern=pattern_of(raw, "alpha_pattern"), rslora=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
    )  # fmt: skip


def virtual_tokens_of(raw: dict[str, Any]) -> int:
    """How many virtual tokens a config has. Raises ConfigError, for those of encoders with a decoder too."""
    n_tokens, parts = raw.get("num_virtual_tokens"), raw.get("num_transformer_submodules", 1)
    if type(n_tokens) is not int or not 1 <= n_tokens <= MAX_RANK:
        raise ConfigError(f"{CONFIG}: num_virtual_tokens: expected 1 to {MAX_RANK}, got {str(n_tokens)[:40]!r}")
    if parts not in (1, None):
        raise ConfigError(
            f"{CONFIG}: num_transformer_submodules: expected 1, of a decoder or an encoder alone, got "
            f"{str(parts)[:40]!r}"
        )
    return n_tokens


def number_of(raw: dict[str, Any], key: str, default: float) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30 or math.isnan(value):
        raise ConfigError(f"{CONFIG}: {key}: expected a number, got {str(value)[:40]!r}")
    return float(value)


def pattern_of(raw: dict[str, Any], key: str) -> dict[str, float]:
    """Names of modules, or expressions, with numbers. Raises ConfigError."""
    found = raw.get(key) or {}
    if not isinstance(found, dict) or len(found) > MAX_TARGETS:
        raise ConfigError(f"{CONFIG}: {key}: expected a mapping of at most {MAX_TARGETS} modules")
    for name in found:
        check_pattern(name, f"{CONFIG}: {key}")
    return {name: number_of(found, name, 0) for name in found}


def task_type_of(config: ModelConfig) -> str | None:
    """PEFT's word for the class of a model; only for those whose word adds no modules to save."""
    if not config.lm or config.heads or config.decoder is None:
        return None
    return "CAUSAL_LM" if config.encoder is None else "SEQ_2_SEQ_LM"


def peft_config(kind: str, base: str, config: ModelConfig, more: dict[str, Any]) -> dict[str, Any]:
    """What stands in adapter_config.json."""
    return {
        "peft_type": kind,
        "task_type": task_type_of(config),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": None,
        **more,
    }
