"""BERT (Devlin et al. 2018, arXiv 1810.04805): learned positions and segments, post-norm, masked tokens and next
sentences."""

from __future__ import annotations

from typing import Any

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
from fledge.model.families.family import Family, Weight
from fledge.model.families.task import Head, Task

DEFAULTS = Size(768, 12, 12, 3072, "gelu", 1e-12, 512, 2, 30522)
POOLER = "bert.pooler.dense"
TASKS = (
    Task("lm", "BertForMaskedLM", lm=True),
    Task("base", "BertModel", heads=(Head("pooler", "first", 0, dense=POOLER),), base=True),
    Task(
        "pretraining", "BertForPreTraining", lm=True,
        heads=(Head("next_sentence", "first", 2, "cls.seq_relationship", POOLER),),
    ),
    Task(
        "next_sentence", "BertForNextSentencePrediction",
        heads=(Head("next_sentence", "first", 2, "cls.seq_relationship", POOLER),),
    ),
    Task("sequence", "BertForSequenceClassification", heads=(Head("sequence", "first", None, "classifier", POOLER),)),
    Task("token", "BertForTokenClassification", heads=(Head("token", "each", None, "classifier"),)),
    Task("span", "BertForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
    Task("choice", "BertForMultipleChoice", heads=(Head("choice", "first", 1, "classifier", POOLER),)),
)  # fmt: skip


def build(shape: ShapeConfig) -> ModelConfig:
    size = size_of_shape(shape, "gelu", 1e-12, kinds=2)
    return body("bert", size, tie=shape.tie is not False, init=shape.init, dropout=shape.dropout)


def read(raw: dict[str, Any]) -> ModelConfig:
    no_decoder(raw)
    size = size_of_file(raw, DEFAULTS, Keys())
    return body("bert", size, **common(raw, size.vocab_size, {"pad": 0}))


def write(config: ModelConfig) -> dict[str, Any]:
    return {**size_in_file(config, Keys()), **more_ids(config)}


def weights(config: ModelConfig) -> list[Weight]:
    return [
        *embeddings("bert.", config),
        *linears("bert.encoder.layer.{i}.", "encoder.layers.{i}.", BERT_BLOCK),
        *output(
            "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias",
            "cls.predictions.decoder", config,
        ),
    ]  # fmt: skip


def preset(width: int, layers: int, heads: int, vocab_size: int = 30522) -> ShapeConfig:
    return ShapeConfig(
        "bert", width=width, layers=layers, heads=heads, context_tokens=512, vocab_size=vocab_size, init=NORMAL
    )


FAMILY = Family(
    name="bert",
    model_type="bert",
    architecture="BertForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="bert.",
    ignored=(".position_ids", "cls.predictions.decoder.bias"),
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    },
    tasks=TASKS,
    presets={
        "bert-base-uncased": preset(768, 12, 12),
        "bert-base-cased": preset(768, 12, 12, 28996),
        "bert-large-uncased": preset(1024, 24, 16),
        "bert-large-cased": preset(1024, 24, 16, 28996),
        "bert-base-multilingual-cased": preset(768, 12, 12, 119547),
        "bert-tiny": preset(128, 2, 2),
    },
)
