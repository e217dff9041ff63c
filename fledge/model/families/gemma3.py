"""Gemma 3's text model (2025, arXiv 2503.19786): Gemma 2 with normalised heads instead of bounded scores, a window in
five of six layers, and a rotary base of their own for these."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import gemma2
from fledge.model.families.decoder import FULL, SLIDING, faithful, from_shape, read_window, read_windows
from fledge.model.families.family import Family, Inside, integer, refuse
from fledge.model.families.rotary import read_rope, rope_json
from fledge.model.families.task import decoder_tasks
from fledge.nn.config import Dense, LayerConfig, Rope, RopeScaling

WITH_IMAGES = Inside(
    "gemma3",
    "Gemma3ForConditionalGeneration",
    {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.", "model.language_model.": "model."},
    ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
)
"""The sizes from 4B on are published with a tower for images, which is not read: a model here reads text alone, and is
saved as such."""
THETAS = (1000000.0, 10000.0)
DEFAULT = {**gemma2.DEFAULT, "max_position_embeddings": 131072, "vocab_size": 262208}


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "attn_logit_softcapping", (None,), "Gemma 3 normalises queries and keys instead")
    sizes, heads = gemma2.read_heads(raw, DEFAULT, soft=False)
    window = read_window(raw, gemma2.WINDOW)
    every = integer(raw, "sliding_window_pattern", 6)
    if every < 1:
        raise ConfigError(f"config.json: sliding_window_pattern: expected a number above 0, got {every}")
    windowed = read_windows(raw, sizes.layers, window, lambda index: (index + 1) % every != 0)
    whole, local = ropes(raw, sizes.channels, sizes.context)
    dense = Dense(sizes.hidden, sizes.activation, True)
    pair = {True: LayerConfig(heads, dense, local, window), False: LayerConfig(heads, dense, whole)}
    layers = tuple(pair[slides] for slides in windowed)
    return gemma2.assembled(raw, "gemma3", sizes, layers, sizes.context, None)


def ropes(
    raw: dict[str, Any],
    channels: int,
    context: int,
    thetas: tuple[float, float] = THETAS,
    local_key: str = "rope_local_base_freq",
) -> tuple[Rope, Rope]:
    """Rotary positions of layers that see everything and of those with a window, in either spelling. `thetas`: their
    bases where config.json has none; `local_key`: where transformers 4 has the second."""
    group = raw.get("rope_parameters")
    groups: dict[str, Any] = {}
    if group is not None:
        if not isinstance(group, dict) or set(group) - {FULL, SLIDING}:
            raise ConfigError(
                f"config.json: rope_parameters: expected {FULL} and {SLIDING} in it, got {str(group)[:60]!r}"
            )
        groups = group
    whole = {"rope_parameters": groups.get(FULL), "rope_theta": raw.get("rope_theta")}
    if raw.get("rope_scaling") is not None:
        if not isinstance(raw["rope_scaling"], dict):
            raise ConfigError(f"config.json: rope_scaling: expected a mapping, got {str(raw['rope_scaling'])[:40]!r}")
        own = groups.get(FULL)
        whole["rope_parameters"] = {**(own if isinstance(own, dict) else {}), **raw["rope_scaling"]}
    local = {"rope_parameters": groups.get(SLIDING), "rope_theta": raw.get(local_key)}
    return read_rope(whole, channels, context, thetas[0]), read_rope(local, channels, context, thetas[1])


def ropes_json(config: ModelConfig, thetas: tuple[float, float] = THETAS) -> dict[str, Any]:
    """config.json's entries for both, in both spellings; a kind of layer that the model lacks gets its custom."""
    layers = config.stack.layers
    channels = layers[0].mixer.head_channels
    found = {layer.window is not None: layer.position for layer in layers}
    whole, local = found.get(False, Rope(thetas[0])), found.get(True, Rope(thetas[1]))
    if not isinstance(whole, Rope) or not isinstance(local, Rope):
        raise ConfigError(f"model: {config.family}'s folder format needs rotary positions")
    old = rope_json(whole, channels)
    groups = {FULL: old["rope_parameters"], SLIDING: rope_json(local, channels)["rope_parameters"]}
    return {**old, "rope_parameters": groups}


def write(config: ModelConfig) -> dict[str, Any]:
    ropes = ropes_json(config)
    return {
        **gemma2.shared_json(config),
        **ropes,
        "rope_local_base_freq": ropes["rope_parameters"][SLIDING]["rope_theta"],
    }


def preset(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int, channels: int = 256, score_channels: int = 256
) -> ShapeConfig:
    """The small ones have 32,768 tokens of context and no scaling."""
    long = width > 2000
    return ShapeConfig(
        "gemma3", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_channels=channels,
        context_tokens=131072 if long else 32768, vocab_size=262208 if long else 262144, norm_eps=1e-6,
        window=1024 if long else 512, score_channels=score_channels,
        rope_scaling=RopeScaling("linear", 8.0) if long else None,
    )  # fmt: skip


FAMILY = Family(
    name="gemma3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    tasks=decoder_tasks("Gemma3ForCausalLM", ("sequence",), stem="Gemma3Text"),
    build=from_shape(
        "gemma3",
        read,
        gemma2.TAKES,
        ("attention_bias",),
        extra=gemma2.extra,
        eps=1e-6,
        activation_key="hidden_activation",
        stretches=False,
    ),
    read=read,
    write=faithful("gemma3", read, write),
    weights=gemma2.weights,
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    inside=WITH_IMAGES,
    presets={
        "gemma-3-270m": preset(640, 2048, 18, 4, 1),
        "gemma-3-1b": preset(1152, 6912, 26, 4, 1),
        "gemma-3-4b": preset(2560, 10240, 34, 8, 4),
        "gemma-3-12b": preset(3840, 15360, 48, 16, 8),
        "gemma-3-27b": preset(5376, 21504, 62, 32, 16, 128, 168),
    },
)
