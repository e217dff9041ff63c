"""MPNet (Song et al. 2020, arXiv 2004.09297): RoBERTa's inputs with T5's relative positions on top, shared by all
layers."""

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
    layer_of,
    linears,
    more_ids,
    output,
    size_in_file,
    size_of_file,
    size_of_shape,
)
from fledge.model.families.family import Family, Weight, refuse
from fledge.model.families.task import Head, Task
from fledge.nn.config import Buckets

OFFSET = 2  # whatever pad_token_id says
BUCKETS = Buckets(32, 128)
IDS: dict[str, int | None] = {"bos": 0, "pad": 1, "eos": 2}
DEFAULTS = Size(768, 12, 12, 3072, "gelu", 1e-12, 512, 0, 30527)
KEYS = Keys(kinds="")
POOLER = "mpnet.pooler.dense"
TASKS = (
    Task("lm", "MPNetForMaskedLM", lm=True),
    Task("base", "MPNetModel", heads=(Head("pooler", "first", 0, dense=POOLER),), base=True),
    Task(
        "sequence", "MPNetForSequenceClassification",
        heads=(Head("sequence", "first", None, "classifier.out_proj", "classifier.dense"),),
    ),
    Task("token", "MPNetForTokenClassification", heads=(Head("token", "each", None, "classifier"),)),
    Task("span", "MPNetForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
    Task("choice", "MPNetForMultipleChoice", heads=(Head("choice", "first", 1, "classifier", POOLER),)),
)  # fmt: skip
BLOCK = {
    "attention.attn.q": "attention.qkv.q",
    "attention.attn.k": "attention.qkv.k",
    "attention.attn.v": "attention.qkv.v",
    "attention.attn.o": "attention.out",
    "attention.LayerNorm": "attention_norms.residual",
    "intermediate.dense": "ffn.inward.up",
    "output.dense": "ffn.down",
    "output.LayerNorm": "ffn_norms.residual",
}


def with_buckets(size: Size, **more: Any) -> ModelConfig:
    return body("mpnet", size, (layer_of(size, BUCKETS),) * size.layers, transform="gelu", **more)


def build(shape: ShapeConfig) -> ModelConfig:
    size = size_of_shape(shape, "gelu", 1e-5, kinds=0, offset=OFFSET)
    ids = {role: i for role, i in IDS.items() if i is not None and i < size.vocab_size}
    return with_buckets(size, tie=shape.tie is not False, init=shape.init, dropout=shape.dropout, special_ids=ids)


def read(raw: dict[str, Any]) -> ModelConfig:
    refuse(raw, "relative_attention_num_buckets", (32, None), "transformers reads 32 buckets whatever this says")
    size = size_of_file(raw, DEFAULTS, KEYS)
    if size.rows <= OFFSET:
        raise ConfigError(f"config.json: max_position_embeddings: expected more than {OFFSET}, got {size.rows}")
    return with_buckets(replace(size, offset=OFFSET), **common(raw, size.vocab_size, IDS))


def write(config: ModelConfig) -> dict[str, Any]:
    stack = config.stack
    if stack.inputs.offset != OFFSET or stack.layers[0].position != BUCKETS:
        raise ConfigError(f"model: MPNet's folder format has positions from {OFFSET} on and {BUCKETS}")
    numbers = size_in_file(config, KEYS)
    return {**numbers, "relative_attention_num_buckets": BUCKETS.n_buckets, **more_ids(config)}


def weights(config: ModelConfig) -> list[Weight]:
    return [
        *embeddings("mpnet.", config),
        Weight("mpnet.encoder.relative_attention_bias.weight", ("encoder.bias.weight",)),
        *linears("mpnet.encoder.layer.{i}.", "encoder.layers.{i}.", BLOCK),
        *output("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder", config),
    ]


FAMILY = Family(
    name="mpnet",
    model_type="mpnet",
    architecture="MPNetForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="mpnet.",
    ignored=(".position_ids", "lm_head.decoder.bias"),
    copies={"lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight"},
    tasks=TASKS,
    presets={
        "mpnet-base": ShapeConfig(
            "mpnet", width=768, layers=12, heads=12, context_tokens=512, vocab_size=30527, init=NORMAL
        ),
    },
)
