"""Rotary positions in config.json in both spellings: `rope_parameters` (transformers 5), `rope_theta` and
`rope_scaling` (4). What transformers would skip over without a word (a key that the kind doesn't use) is refused here.
"""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.families.family import flag, integer, number
from fledge.nn.config import MAX_CONTEXT, Rope, RopeScaling

YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings", *YARN),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
}
OLD_NAMES = {"su": "longrope", None: "default"}
STRETCHED = ("linear", "dynamic")  # max_position_embeddings is the length before scaling


def read_rope(
    raw: dict[str, Any], channels: int, context: int, theta: float = 10000.0, share: float | None = None
) -> Rope:
    """The rotary position of a config.json whose heads have `channels`. `context`: max_position_embeddings.

    `share`: the family's custom for the share of channels that turn; None for a family in which all do.
    """
    group = scaling_group(raw)
    theta = once(group, raw, "rope_theta", theta)
    if theta <= 0:
        raise ConfigError(f"config.json: rope_theta: expected a number above 0, got {theta}")
    turned = turned_channels(group, raw, channels, share)
    return Rope(theta, 0 if turned == channels else turned, read_scaling(group, raw, context))


def once(group: dict[str, Any], raw: dict[str, Any], key: str, default: float) -> float:
    """A number that may stand in the group, beside it, or in both alike. Raises ConfigError where they differ."""
    beside = number(raw, key, default)
    inside = number(group, key, beside)
    if inside != beside and raw.get(key) is not None:
        raise ConfigError(f"config.json: {key}: expected one value, got {inside} and {beside}; remove one")
    return inside


def scaling_group(raw: dict[str, Any]) -> dict[str, Any]:
    """What `rope_parameters` and `rope_scaling` say. Raises ConfigError where they contradict each other."""
    groups = []
    for name in ("rope_parameters", "rope_scaling"):
        group = raw.get(name)
        if not isinstance(group, dict | None):
            raise ConfigError(f"config.json: {name}: expected a mapping, got {str(group)[:40]!r}")
        groups.append({key: value for key, value in (group or {}).items() if value is not None})
    parameters, scaling = groups
    if scaling and parameters.get("rope_type") == "default":
        parameters.pop("rope_type")
    for key in parameters.keys() & scaling.keys():
        if parameters[key] != scaling[key]:
            raise ConfigError(
                f"config.json: rope_scaling: {key[:40]}: expected {str(parameters[key])[:40]}, as rope_parameters has "
                f"it, got {str(scaling[key])[:40]}; remove one"
            )
    return parameters | scaling


def turned_channels(group: dict[str, Any], raw: dict[str, Any], channels: int, share: float | None) -> int:
    key = "partial_rotary_factor"
    part = once(group, raw, key, 1.0 if share is None else share)
    if share is None and part != 1:
        raise ConfigError(f"config.json: {key}: {part} is not supported (all channels of this family's heads turn)")
    turned = int(channels * part)
    if not 0 < turned <= channels:
        raise ConfigError(f"config.json: {key}: expected a share that turns 1..{channels} channels, got {part}")
    return turned


def read_scaling(group: dict[str, Any], raw: dict[str, Any], context: int) -> RopeScaling | None:
    kind = group.get("rope_type", group.get("type"))
    kind = OLD_NAMES.get(kind, kind) if isinstance(kind, str | None) else kind
    if not isinstance(kind, str) or kind not in KEYS:
        raise ConfigError(f"config.json: rope_type: expected one of {', '.join(KEYS)}, got {str(kind)[:40]!r}")
    known = {*KEYS[kind], "rope_theta", "rope_type", "type", "partial_rotary_factor"}
    strangers = sorted(key for key, value in group.items() if key not in known and value is not None)
    if strangers:
        raise ConfigError(f"config.json: rope_type {kind}: expected no {strangers[0][:40]!r}; it has no meaning there")
    if kind == "default":
        return None
    if kind in STRETCHED:
        return RopeScaling(kind, factor_of(group), context)  # type: ignore[arg-type]
    key = "original_max_position_embeddings"
    original = integer(raw if raw.get(key) is not None else group, key, context)
    if not 0 < original <= MAX_CONTEXT:
        raise ConfigError(f"config.json: {key}: expected an integer in 1..{MAX_CONTEXT}, got {original}")
    if kind == "llama3":
        low, high = number(group, "low_freq_factor", 1.0), number(group, "high_freq_factor", 4.0)
        return RopeScaling("llama3", factor_of(group), original, low, high)
    factor = context / original if group.get("factor") is None else factor_of(group)
    attention = None if group.get("attention_factor") is None else number(group, "attention_factor", 1.0)
    if kind == "longrope":
        short, long = numbers(group, "short_factor"), numbers(group, "long_factor")
        return RopeScaling(
            "longrope", factor, original, attention_factor=attention, short_factors=short, long_factors=long
        )
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=number(group, "beta_fast", 32.0) or 32.0,
        beta_slow=number(group, "beta_slow", 1.0) or 1.0,
        attention_factor=attention,
        mscale=number(group, "mscale", 0.0),
        mscale_all=number(group, "mscale_all_dim", 0.0),
        truncate=group.get("truncate") is None or flag(group, "truncate", True),
    )


def factor_of(group: dict[str, Any]) -> float:
    if group.get("factor") is None:
        raise ConfigError("config.json: rope_scaling: expected a factor, got none")
    return number(group, "factor", 1.0)


def numbers(group: dict[str, Any], key: str) -> tuple[float, ...]:
    values = group.get(key)
    if not isinstance(values, list):
        raise ConfigError(f"config.json: {key}: expected a list of numbers, got {str(values)[:40]!r}")
    return tuple(number({key: value}, key, 1.0) for value in values)


def longest(rope: Rope, context: int) -> int:
    """Tokens of the longest document, for a model whose config.json has `context` as max_position_embeddings."""
    scaling = rope.scaling
    if scaling is None or scaling.kind in ("llama3", "longrope"):
        return context
    whole = (context if scaling.kind in STRETCHED else scaling.original_tokens) * scaling.factor
    return max(context, int(min(whole, MAX_CONTEXT)))


def max_position_embeddings(rope: Rope, context: int) -> int:
    """What stands in config.json for a model of `context` tokens: the inverse of `longest`."""
    scaling = rope.scaling
    return scaling.original_tokens if scaling is not None and scaling.kind in STRETCHED else context


def rope_json(rope: Rope, channels: int, share: bool = False) -> dict[str, Any]:
    """config.json's entries in both spellings: transformers 5 reads rope_parameters, 4 (and llama.cpp's converter)
    rope_theta and rope_scaling. `share`: the family lets a part of the channels turn."""
    scaling = scaling_json(rope.scaling) if rope.scaling is not None else {"rope_type": "default"}
    parameters = {"rope_theta": rope.theta, **scaling}
    entries: dict[str, Any] = {"rope_theta": rope.theta}
    if share:
        parameters["partial_rotary_factor"] = entries["partial_rotary_factor"] = (rope.channels or channels) / channels
    if rope.scaling is not None:
        entries["rope_scaling"] = scaling
    return {"rope_parameters": parameters, **entries}


def scaling_json(scaling: RopeScaling) -> dict[str, Any]:
    entries: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in STRETCHED:
        return entries
    entries["original_max_position_embeddings"] = scaling.original_tokens
    if scaling.kind == "llama3":
        return {**entries, "low_freq_factor": scaling.low_frequency, "high_freq_factor": scaling.high_frequency}
    if scaling.attention_factor is not None:
        entries["attention_factor"] = scaling.attention_factor
    if scaling.kind == "longrope":
        return {**entries, "short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
    entries |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    mscale = {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all}
    return {**entries, **{key: value for key, value in mscale.items() if value}}
