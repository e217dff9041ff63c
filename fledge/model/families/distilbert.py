"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT's body at half depth, without segments and pooler."""

from __future__ import annotations

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
    output,
    size_in_file,
    size_of_file,
    size_of_shape,
)
from fledge.model.families.family import Family, Weight
from fledge.model.families.task import Head, Task

EPS = 1e-12  # config.json has no word for it
DEFAULTS = Size(768, 6, 12, 3072, "gelu", EPS, 512, 0, 30522)
KEYS = Keys("dim", "n_layers", "n_heads", "hidden_dim", "activation", eps="", kinds="")
TASKS = (
    Task("lm", "DistilBertForMaskedLM", lm=True),
    Task("base", "DistilBertModel", base=True),
    Task(
        "sequence", "DistilBertForSequenceClassification",
        heads=(Head("sequence", "first", None, "classifier", "pre_classifier", activation="relu"),),
    ),
    Task("token", "DistilBertForTokenClassification", heads=(Head("token", "each", None, "classifier"),)),
    Task("span", "DistilBertForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
    Task(
        "choice", "DistilBertForMultipleChoice",
        heads=(Head("choice", "first", 1, "classifier", "pre_classifier", activation="relu"),),
    ),
)  # fmt: skip
BLOCK = {
    "attention.q_lin": "attention.qkv.q",
    "attention.k_lin": "attention.qkv.k",
    "attention.v_lin": "attention.qkv.v",
    "attention.out_lin": "attention.out",
    "sa_layer_norm": "attention_norms.residual",
    "ffn.lin1": "ffn.inward.up",
    "ffn.lin2": "ffn.down",
    "output_layer_norm": "ffn_norms.residual",
}


def build(shape: ShapeConfig) -> ModelConfig:
    size = size_of_shape(shape, "gelu", EPS, kinds=0)
    return body("distilbert", size, tie=shape.tie is not False, init=shape.init, dropout=shape.dropout)


def read(raw: dict[str, Any]) -> ModelConfig:
    size = size_of_file(raw, DEFAULTS, KEYS)  # sinusoidal_pos_embds says how the stored table once started
    return body("distilbert", size, **common(raw, size.vocab_size, {"pad": 0}))


def write(config: ModelConfig) -> dict[str, Any]:
    check_eps(config)
    return {**size_in_file(config, KEYS), **more_ids(config)}


def check_eps(config: ModelConfig) -> None:
    if config.stack.norm.eps != EPS:
        raise ConfigError(f"model.norm_eps: DistilBERT's folder format has {EPS} only, got {config.stack.norm.eps}")


def weights(config: ModelConfig) -> list[Weight]:
    return [
        *embeddings("distilbert.", config),
        *linears("distilbert.transformer.layer.{i}.", "encoder.layers.{i}.", BLOCK),
        *output("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector", config),
    ]


def preset(vocab_size: int) -> ShapeConfig:
    return ShapeConfig(
        "distilbert", width=768, layers=6, heads=12, context_tokens=512, vocab_size=vocab_size, init=NORMAL
    )


ALIASES = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}

FAMILY = Family(
    name="distilbert",
    model_type="distilbert",
    architecture="DistilBertForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    aliases=ALIASES,
    prefix="distilbert.",
    ignored=(".position_ids",),
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    tasks=TASKS,
    presets={
        "distilbert-base-uncased": preset(30522),
        "distilbert-base-cased": preset(28996),
        "distilbert-base-multilingual-cased": preset(119547),
    },
)
