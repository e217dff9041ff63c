"""ALBERT (Lan et al. 2019, arXiv 1909.11942): BERT's body with one block for all layers and a narrow embedding; masked
tokens and the order of two sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.encoder import (
    NORMAL,
    Keys,
    Size,
    body,
    common,
    embeddings,
    linears,
    more_ids,
    no_decoder,
    output,
    size_in_file,
    size_of_file,
    size_of_shape,
)
from fledge.model.families.family import Family, Weight, integer, refuse
from fledge.model.families.task import Head, Task

EMBEDDING_WIDTH = 128
DEFAULTS = Size(4096, 12, 64, 16384, "gelu_tanh", 1e-12, 512, 2, 30000, embedding_width=EMBEDDING_WIDTH)
KEYS = Keys(embedding_width="embedding_size")
POOLER = "albert.pooler"
TASKS = (
    Task("lm", "AlbertForMaskedLM", lm=True),
    Task("base", "AlbertModel", heads=(Head("pooler", "first", 0, dense=POOLER),), base=True),
    Task(
        "pretraining", "AlbertForPreTraining", lm=True,
        heads=(Head("sentence_order", "first", None, "sop_classifier.classifier", POOLER),),
    ),
    Task("sequence", "AlbertForSequenceClassification", heads=(Head("sequence", "first", None, "classifier", POOLER),)),
    Task("token", "AlbertForTokenClassification", heads=(Head("token", "each", None, "classifier"),)),
    Task("span", "AlbertForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
    Task("choice", "AlbertForMultipleChoice", heads=(Head("choice", "first", 1, "classifier", POOLER),)),
)  # fmt: skip
BLOCK = {
    "attention.query": "attention.qkv.q",
    "attention.key": "attention.qkv.k",
    "attention.value": "attention.qkv.v",
    "attention.dense": "attention.out",
    "attention.LayerNorm": "attention_norms.residual",
    "ffn": "ffn.inward.up",
    "ffn_output": "ffn.down",
    "full_layer_layer_norm": "ffn_norms.residual",
}


def build(shape: ShapeConfig) -> ModelConfig:
    size = size_of_shape(shape, "gelu_tanh", 1e-12, kinds=2, widened=True)
    size = replace(size, embedding_width=size.embedding_width or EMBEDDING_WIDTH)
    return with_groups(size, 1, tie=shape.tie is not False, init=shape.init, dropout=shape.dropout)


def with_groups(size: Size, groups: int, **more: Any) -> ModelConfig:
    """`size.layers` layers over `groups` blocks, each used by a run of neighbours. Raises ConfigError."""
    if not 0 < groups <= size.layers:
        raise ConfigError(f"config.json: num_hidden_groups: expected 1..{size.layers}, got {groups}")
    return body("albert", size, shared=runs(size.layers, groups), **more)


def runs(layers: int, groups: int) -> tuple[int, ...]:
    return tuple(int(i / (layers / groups)) for i in range(layers))


def read(raw: dict[str, Any]) -> ModelConfig:
    no_decoder(raw)
    refuse(raw, "inner_group_num", (1, None), "a group holds one block; no published ALBERT has more")
    size = size_of_file(raw, DEFAULTS, KEYS, "gelu_new")
    if not size.embedding_width:
        raise ConfigError("config.json: embedding_size: expected a positive number, got 0")
    groups = integer(raw, "num_hidden_groups", 1)
    return with_groups(size, groups, **common(raw, size.vocab_size, {"bos": 2, "eos": 3, "pad": 0}))


def write(config: ModelConfig) -> dict[str, Any]:
    stack = config.stack
    if stack.shared != runs(len(stack.layers), stack.n_blocks):
        raise ConfigError("model: ALBERT's folder format has equal runs of layers that share a block")
    numbers = size_in_file(config, KEYS, ("gelu_new",))
    return {**numbers, "num_hidden_groups": stack.n_blocks, "inner_group_num": 1, **more_ids(config)}


def weights(config: ModelConfig) -> list[Weight]:
    table = embeddings("albert.", config)
    table += linears("albert.encoder.", "encoder.inputs.", {"embedding_hidden_mapping_in": "widen"})
    table += linears("albert.encoder.albert_layer_groups.{i}.albert_layers.0.", "encoder.layers.{i}.", BLOCK)
    return table + output(
        "predictions.dense", "predictions.LayerNorm", "predictions.bias", "predictions.decoder", config
    )


def preset(width: int, layers: int, heads: int, activation: str = "gelu_tanh") -> ShapeConfig:
    return ShapeConfig(
        "albert", width=width, layers=layers, heads=heads, context_tokens=512, vocab_size=30000, init=NORMAL,
        activation=activation,  # type: ignore[arg-type]
    )  # fmt: skip


FAMILY = Family(
    name="albert",
    model_type="albert",
    architecture="AlbertForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="albert.",
    ignored=(".position_ids", "predictions.decoder.bias"),
    copies={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    },
    tasks=TASKS,
    presets={
        "albert-base-v1": preset(768, 12, 12, "gelu"),
        "albert-base-v2": preset(768, 12, 12),
        "albert-large-v2": preset(1024, 24, 16),
        "albert-xlarge-v2": preset(2048, 24, 16),
        "albert-xxlarge-v2": preset(4096, 12, 64, "gelu"),
    },
)
