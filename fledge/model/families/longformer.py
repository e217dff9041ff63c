"""Longformer (Beltagy et al. 2020, arXiv 2004.05150): RoBERTa's body, a window in each layer, and tokens of kind GLOBAL
that see all and are seen by all through maps of their own.

Which tokens are global, the caller says in Tokens.kind; a sequence head takes the first where nothing is said. For
questions over a text, the question's tokens are (transformers finds them by separators)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.encoder import (
    BERT_BLOCK,
    NORMAL,
    Keys,
    Size,
    body,
    common,
    embeddings,
    layer_of,
    linears,
    more_ids,
    no_decoder,
    only,
    output,
    size_in_file,
    size_of_file,
    size_of_shape,
)
from fledge.model.families.family import Family, Weight, refuse
from fledge.model.families.roberta import PAD, offset_of
from fledge.model.families.task import Head, Task
from fledge.nn.config import MAX_CONTEXT, LayerConfig, Longformer, bounded

WINDOW = 512
IDS: dict[str, int | None] = {"bos": 0, "pad": PAD, "eos": 2, "sep": 2}
DEFAULTS = Size(768, 12, 12, 3072, "gelu", 1e-12, 512, 1, 30522)
POOLER = "longformer.pooler.dense"
TASKS = (
    Task("lm", "LongformerForMaskedLM", lm=True),
    Task("base", "LongformerModel", heads=(Head("pooler", "first", 0, dense=POOLER),), base=True),
    Task(
        "sequence", "LongformerForSequenceClassification",
        heads=(Head("sequence", "first", None, "classifier.out_proj", "classifier.dense", global_first=True),),
    ),
    Task("token", "LongformerForTokenClassification", heads=(Head("token", "each", None, "classifier"),)),
    Task("span", "LongformerForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
    Task("choice", "LongformerForMultipleChoice", heads=(Head("choice", "first", 1, "classifier", POOLER),)),
)  # fmt: skip


def layers_of(size: Size, windows: tuple[int, ...]) -> tuple[LayerConfig, ...]:
    plain = layer_of(size, global_maps=True)
    return tuple(replace(plain, pattern=Longformer(window)) for window in windows)


def build(shape: ShapeConfig) -> ModelConfig:
    size = size_of_shape(shape, "gelu", 1e-5, kinds=1, offset=PAD + 1)
    window = shape.window or min(WINDOW, size.context_tokens + size.context_tokens % 2)
    ids = {role: i for role, i in IDS.items() if i is not None and i < size.vocab_size}
    return body(
        "longformer", size, layers_of(size, (window,) * size.layers), "gelu", tie=shape.tie is not False,
        init=shape.init, dropout=shape.dropout, special_ids=ids,
    )  # fmt: skip


def windows_of(raw: dict[str, Any], layers: int) -> tuple[int, ...]:
    """The window of each layer: config.json has one number, or a list. Raises ConfigError."""
    value = raw.get("attention_window", WINDOW)
    windows = value if isinstance(value, list) else [value] * layers
    if len(windows) != layers:
        raise ConfigError(f"config.json: attention_window: expected {layers} numbers, one a layer, got {len(windows)}")
    for window in windows:
        bounded("config.json: attention_window", window, 2, MAX_CONTEXT)
        if window % 2:
            raise ConfigError(f"config.json: attention_window: expected even numbers, got {window}")
    return tuple(windows)


def read(raw: dict[str, Any]) -> ModelConfig:
    no_decoder(raw)
    only(raw, "onnx_export", False, "it changes no number, and nothing here reads it")
    refuse(raw, "type_vocab_size", (1,), "kinds of tokens mark the global ones, so there is one segment")
    size = offset_of(raw, size_of_file(raw, DEFAULTS, Keys()))
    ids = common(raw, size.vocab_size, IDS)
    return body("longformer", size, layers_of(size, windows_of(raw, size.layers)), "gelu", **ids)


def write(config: ModelConfig) -> dict[str, Any]:
    if config.stack.inputs.offset != config.special_ids.get("pad", -2) + 1:
        raise ConfigError("model: Longformer's positions start after its padding id; set special_ids.pad")
    windows = []
    for layer in config.stack.layers:
        if not isinstance(layer.pattern, Longformer):
            raise ConfigError("model: Longformer's folder format has a window in each layer")
        windows.append(layer.pattern.window)
    return {**size_in_file(config, Keys()), "attention_window": windows, **more_ids(config)}


def weights(config: ModelConfig) -> list[Weight]:
    block, ours = "longformer.encoder.layer.{i}.", "encoder.layers.{i}."
    maps = {"query": "q", "key": "k", "value": "v"}
    globals_ = {f"attention.self.{a}_global": f"attention.global_qkv.{b}" for a, b in maps.items()}
    return [
        *embeddings("longformer.", config),
        *linears(block, ours, BERT_BLOCK | globals_),
        *output("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder", config),
    ]


def preset(width: int, layers: int, heads: int) -> ShapeConfig:
    return ShapeConfig(
        "longformer", width=width, layers=layers, heads=heads, context_tokens=4096, vocab_size=50265, init=NORMAL
    )


FAMILY = Family(
    name="longformer",
    model_type="longformer",
    architecture="LongformerForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="longformer.",
    ignored=(".position_ids", "lm_head.decoder.bias"),
    copies={"lm_head.decoder.weight": "longformer.embeddings.word_embeddings.weight"},
    tasks=TASKS,
    presets={"longformer-base-4096": preset(768, 12, 12), "longformer-large-4096": preset(1024, 24, 16)},
)
