"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT's body, positions counted from the padding id + 1, no segments."""

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
    linears,
    more_ids,
    no_decoder,
    output,
    size_in_file,
    size_of_file,
    size_of_shape,
)
from fledge.model.families.family import Family, Weight, integer
from fledge.model.families.task import Head, Task

DEFAULTS = Size(768, 12, 12, 3072, "gelu", 1e-12, 512, 2, 50265)
PAD = 1
POOLER = "roberta.pooler.dense"
TASKS = (
    Task("lm", "RobertaForMaskedLM", lm=True),
    Task("base", "RobertaModel", heads=(Head("pooler", "first", 0, dense=POOLER),), base=True),
    Task(
        "sequence", "RobertaForSequenceClassification",
        heads=(Head("sequence", "first", None, "classifier.out_proj", "classifier.dense"),),
    ),
    Task("token", "RobertaForTokenClassification", heads=(Head("token", "each", None, "classifier"),)),
    Task("span", "RobertaForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
    Task("choice", "RobertaForMultipleChoice", heads=(Head("choice", "first", 1, "classifier", POOLER),)),
)  # fmt: skip


def build(shape: ShapeConfig) -> ModelConfig:
    size = size_of_shape(shape, "gelu", 1e-5, kinds=1, offset=PAD + 1)
    return body(
        "roberta", size, transform="gelu", tie=shape.tie is not False, init=shape.init, dropout=shape.dropout,
        special_ids={"bos": 0, "pad": PAD, "eos": 2},
    )  # fmt: skip


def offset_of(raw: dict[str, Any], size: Size) -> Size:
    """The size with its first position after the padding id, as fairseq counts."""
    pad = integer(raw, "pad_token_id", PAD)
    if not pad + 1 < size.rows or pad >= size.vocab_size:
        raise ConfigError(
            f"config.json: pad_token_id: positions start after it, expected less than {size.rows - 1}, got {pad}"
        )
    return replace(size, offset=pad + 1)


def read(raw: dict[str, Any]) -> ModelConfig:
    no_decoder(raw)
    size = offset_of(raw, size_of_file(raw, DEFAULTS, Keys()))
    ids = common(raw, size.vocab_size, {"bos": 0, "pad": PAD, "eos": 2})
    return body("roberta", size, transform="gelu", **ids)


def write(config: ModelConfig) -> dict[str, Any]:
    if config.stack.inputs.offset != config.special_ids.get("pad", -2) + 1:
        raise ConfigError(f"model: {config.family}'s positions start after its padding id; set special_ids.pad")
    return {**size_in_file(config, Keys()), **more_ids(config)}


def weights(config: ModelConfig) -> list[Weight]:
    return [
        *embeddings("roberta.", config),
        *linears("roberta.encoder.layer.{i}.", "encoder.layers.{i}.", BERT_BLOCK),
        *output("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder", config),
    ]


def preset(width: int, layers: int, heads: int) -> ShapeConfig:
    return ShapeConfig(
        "roberta", width=width, layers=layers, heads=heads, context_tokens=512, vocab_size=50265, init=NORMAL
    )


FAMILY = Family(
    name="roberta",
    model_type="roberta",
    architecture="RobertaForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="roberta.",
    ignored=(".position_ids", "lm_head.decoder.bias"),
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    },
    tasks=TASKS,
    presets={"roberta-base": preset(768, 12, 12), "roberta-large": preset(1024, 24, 16)},
)
