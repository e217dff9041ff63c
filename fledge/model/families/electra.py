"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT's body, an embedding that may be narrower, and a discriminator
that tells replaced tokens. A generator is the same with a masked-LM output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import HeadConfig, ModelConfig, ShapeConfig
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
from fledge.model.families.family import ACTIVATIONS, Family, Weight, choice
from fledge.model.families.task import Head, Task

DEFAULTS = Size(256, 12, 4, 1024, "gelu", 1e-12, 512, 2, 30522, embedding_width=128)
KEYS = Keys(embedding_width="embedding_size")
DISCRIMINATOR = "discriminator_predictions.dense"
TASKS = (
    Task("lm", "ElectraForMaskedLM", lm=True),
    Task("base", "ElectraModel", base=True),
    Task(
        "replaced", "ElectraForPreTraining",
        heads=(Head("replaced", "each", 1, "discriminator_predictions.dense_prediction", DISCRIMINATOR),),
    ),
    Task(
        "sequence", "ElectraForSequenceClassification",
        heads=(Head("sequence", "first", None, "classifier.out_proj", "classifier.dense", activation="gelu"),),
    ),
    Task("token", "ElectraForTokenClassification", heads=(Head("token", "each", None, "classifier"),)),
    Task("span", "ElectraForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
    Task(
        "choice", "ElectraForMultipleChoice",
        heads=(Head("choice", "first", 1, "classifier", "sequence_summary.summary", activation="gelu"),),
    ),
)  # fmt: skip
SUMMARY = {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"}


def adjust_head(head: HeadConfig, config: ModelConfig, raw: dict[str, Any]) -> HeadConfig:
    """The discriminator's activation is the blocks'; the summary's is config.json's."""
    if head.name == "replaced":
        return replace(head, activation=config.stack.layers[0].dense.activation)
    if head.name == "choice":
        for key, only in (("summary_type", "first"), ("summary_use_proj", True)):
            if raw.get(key, only) != only:
                raise ConfigError(f"config.json: {key}: {str(raw[key])[:40]!r} is not supported; expected {only!r}")
        return replace(head, activation=choice(raw, "summary_activation", {**ACTIVATIONS, "tanh": "tanh"}, "gelu"))
    return head


def narrow(size: Size) -> Size:
    """Without a product where the embedding is as wide as the stack."""
    return replace(size, embedding_width=0 if size.embedding_width == size.width else size.embedding_width)


def build(shape: ShapeConfig) -> ModelConfig:
    size = narrow(size_of_shape(shape, "gelu", 1e-12, kinds=2, widened=True))
    return body(
        "electra", size, transform="gelu", tie=shape.tie is not False, init=shape.init, dropout=shape.dropout
    )  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    no_decoder(raw)
    size = size_of_file(raw, DEFAULTS, KEYS)
    if not size.embedding_width:
        raise ConfigError("config.json: embedding_size: expected a positive number, got 0")
    return body("electra", narrow(size), transform="gelu", **common(raw, size.vocab_size, {"pad": 0}))


def write(config: ModelConfig) -> dict[str, Any]:
    names = {"relu": "relu", "gelu": "gelu", "tanh": "tanh", "gelu_tanh": "gelu_new", "silu": "silu"}
    summaries = [names[head.activation] for head in config.heads if head.name == "choice"]
    summary = {**SUMMARY, "summary_activation": summaries[0]} if summaries else SUMMARY
    return {**size_in_file(config, KEYS), **summary, **more_ids(config)}


def weights(config: ModelConfig) -> list[Weight]:
    table = embeddings("electra.", config)
    if config.stack.inputs.width:
        table += linears("electra.", "encoder.inputs.", {"embeddings_project": "widen"})
    return [
        *table,
        *linears("electra.encoder.layer.{i}.", "encoder.layers.{i}.", BERT_BLOCK),
        *output(
            "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias",
            "generator_lm_head", config,
        ),
    ]  # fmt: skip


def preset(width: int, layers: int, heads: int, hidden: int, task: str, embedding_width: int = 0) -> ShapeConfig:
    return ShapeConfig(
        "electra", width=width, layers=layers, heads=heads, hidden=hidden, context_tokens=512, vocab_size=30522,
        embedding_width=embedding_width, task=task, init=NORMAL,
    )  # fmt: skip


FAMILY = Family(
    name="electra",
    model_type="electra",
    architecture="ElectraForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="electra.",
    ignored=(".position_ids",),
    copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    tasks=TASKS,
    adjust_head=adjust_head,
    presets={
        "electra-small-discriminator": preset(256, 12, 4, 1024, "replaced", 128),
        "electra-base-discriminator": preset(768, 12, 12, 3072, "replaced"),
        "electra-large-discriminator": preset(1024, 24, 16, 4096, "replaced"),
        "electra-small-generator": preset(256, 12, 4, 1024, "lm", 128),
        "electra-base-generator": preset(256, 12, 4, 1024, "lm", 768),
        "electra-large-generator": preset(256, 24, 4, 1024, "lm", 1024),
    },
)
