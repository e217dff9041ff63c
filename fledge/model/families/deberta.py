"""DeBERTa v1 (He et al. 2020, arXiv 2006.03654): BERT's body, scores that add terms of content and distance."""

from __future__ import annotations

import math
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
    layer_of,
    linears,
    more_ids,
    only,
    output,
    pooled_activation,
    pooled_name,
    size_in_file,
    size_of_file,
    size_of_shape,
)
from fledge.model.families.family import Family, Weight, flag
from fledge.model.families.task import Head, Task
from fledge.nn.config import MAX_CONTEXT, Disentangled, bounded

TERMS = ("c2p", "p2c")
DEFAULTS = Size(768, 12, 12, 3072, "gelu", 1e-7, 512, 0, 50265)
TASKS = (
    Task("lm", "DebertaForMaskedLM", lm=True),
    Task("base", "DebertaModel", base=True),
    Task(
        "sequence", "DebertaForSequenceClassification",
        heads=(Head("sequence", "first", None, "classifier", "pooler.dense", activation="gelu"),),
    ),
    Task("token", "DebertaForTokenClassification", heads=(Head("token", "each", None, "classifier"),)),
    Task("span", "DebertaForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
)  # fmt: skip
BLOCK = {name: ours for name, ours in BERT_BLOCK.items() if not name.startswith("attention.self")}
IGNORED = (
    ".position_ids", "embeddings.position_embeddings.weight", "cls.predictions.decoder.bias",
    "mask_predictions.dense.weight", "mask_predictions.dense.bias", "mask_predictions.LayerNorm.weight",
    "mask_predictions.LayerNorm.bias", "mask_predictions.classifier.weight", "mask_predictions.classifier.bias",
)  # fmt: skip


def terms_of(raw: dict[str, Any]) -> tuple[str, ...]:
    """Which terms scores add: config.json has a list, or `c2p|p2c`. Raises ConfigError."""
    value = raw.get("pos_att_type")
    terms = [part.strip() for part in value.lower().split("|")] if isinstance(value, str) else value or []
    if not isinstance(terms, list) or len(terms) > len(TERMS) or any(term not in TERMS for term in terms):
        raise ConfigError(f"config.json: pos_att_type: expected some of {', '.join(TERMS)}, got {str(value)[:60]!r}")
    if len(set(terms)) < len(terms):
        raise ConfigError(f"config.json: pos_att_type: expected each term once, got {str(value)[:60]!r}")
    return tuple(terms)


def span_of(raw: dict[str, Any], rows: int) -> int:
    """The farthest distance with a vector of its own; below 1 in config.json: the number of positions."""
    value = raw.get("max_relative_positions", -1)
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        return rows
    bounded("config.json: max_relative_positions", value, 1, MAX_CONTEXT)
    return int(value)


def position_of(raw: dict[str, Any], size: Size, terms: tuple[str, ...], **more: Any) -> Disentangled | None:
    if not flag(raw, "relative_attention", False):
        return None
    if not terms:
        raise ConfigError("config.json: relative_attention: expected a term in pos_att_type to use it, got none")
    return Disentangled(
        span_of(raw, size.rows), content_to_position="c2p" in terms, position_to_content="p2c" in terms, **more
    )


def model(
    family: str, size: Size, position: Disentangled | None, n_terms: int, learned: bool, key_bias: bool, **more: Any
) -> ModelConfig:
    """DeBERTa of either version. `learned`: positions are added to the embedding too."""
    scale = 1.0 / math.sqrt(size.width // size.heads * (1 + n_terms))  # each term adds its own variance (§3.2)
    layer = layer_of(size, position, scale=scale, key_bias=key_bias)
    context, size = size.context_tokens, size if learned else replace(size, rows=0)
    return body(family, size, (layer,) * size.layers, context_tokens=context, **more)


def refusals(raw: dict[str, Any], width: int) -> None:
    """What no published DeBERTa has and the body cannot say."""
    only(raw, "embedding_size", width, "the embedding is as wide as the stack")
    only(raw, "pooler_hidden_size", width, "the pooler is as wide as the stack")
    only(raw, "talking_head", False, "heads do not mix their scores")


def build(shape: ShapeConfig) -> ModelConfig:
    size = size_of_shape(shape, "gelu", 1e-7, kinds=0)
    position = Disentangled(size.rows)
    tie = shape.tie is not False
    return model("deberta", size, position, 2, False, False, tie=tie, init=shape.init, dropout=shape.dropout)


def read(raw: dict[str, Any]) -> ModelConfig:
    size, terms = size_of_file(raw, DEFAULTS, Keys()), terms_of(raw)
    refusals(raw, size.width)
    learned = flag(raw, "position_biased_input", True)
    ids = common(raw, size.vocab_size, {"pad": 0})
    ids["tie"] = ids["tie"] or not flag(raw, "legacy", True)
    return model("deberta", size, position_of(raw, size, terms), len(terms), learned, False, **ids)


def adjust_head(head: HeadConfig, config: ModelConfig, raw: dict[str, Any]) -> HeadConfig:
    return replace(head, activation=pooled_activation(raw, "pooler_hidden_act", "gelu")) if head.hidden else head


def write(config: ModelConfig) -> dict[str, Any]:
    return in_file(config, False)


def in_file(config: ModelConfig, key_bias: bool) -> dict[str, Any]:
    """What both versions' config.json say. Raises ConfigError."""
    heads, position = config.stack.layers[0].mixer, config.stack.layers[0].position
    if heads.key_bias != key_bias or not isinstance(position, Disentangled | None):
        raise ConfigError(f"model: {config.family}'s folder format has disentangled positions, and no other key bias")
    n_terms = round(1 / (heads.head_channels * (heads.scale or heads.head_channels**-0.5) ** 2)) - 1
    terms = list(TERMS[:n_terms])
    if position is not None:
        flags = (position.content_to_position, position.position_to_content)
        terms = [term for term, used in zip(TERMS, flags, strict=True) if used]
    return {
        **size_in_file(config, Keys()),
        "max_position_embeddings": config.context_tokens,
        "position_biased_input": bool(config.stack.inputs.positions),
        "relative_attention": position is not None,
        "max_relative_positions": -1 if position is None else position.span,
        "pos_att_type": terms,
        "pooler_hidden_act": pooled_name(config, "gelu"),
        "pooler_hidden_size": config.stack.width,
        "legacy": True,
        **more_ids(config),
    }


def weights(config: ModelConfig) -> list[Weight]:
    theirs, ours = "deberta.encoder.layer.{i}.attention.self.", "encoder.layers.{i}.attention."
    heads, position = config.stack.layers[0].mixer, config.stack.layers[0].position
    qkv = tuple(f"{ours}qkv.{x}.weight" for x in "qkv")
    table = [
        Weight(f"{theirs}in_proj.weight", qkv, "interleaved", heads=heads.n_heads),
        Weight(f"{theirs}q_bias", (f"{ours}qkv.q.bias",)),
        Weight(f"{theirs}v_bias", (f"{ours}qkv.v.bias",)),
    ]
    if isinstance(position, Disentangled):
        table.append(Weight("deberta.encoder.rel_embeddings.weight", ("encoder.distances.weight",)))
        if position.content_to_position:
            table.append(Weight(f"{theirs}pos_proj.weight", (f"{ours}distances.k.weight",)))
        if position.position_to_content:
            table += linears(theirs, ours, {"pos_q_proj": "distances.q"})
    return [*embeddings("deberta.", config), *table, *blocks(), *lm_rows(config)]


def blocks() -> list[Weight]:
    return linears("deberta.encoder.layer.{i}.", "encoder.layers.{i}.", BLOCK)


def lm_rows(config: ModelConfig) -> list[Weight]:
    transform = "cls.predictions.transform."
    names = (f"{transform}dense", f"{transform}LayerNorm", "cls.predictions.bias", "cls.predictions.decoder")
    return output(*names, config)


def renamed(rows: list[Weight]) -> list[Weight]:
    """The rows under the names that Microsoft's own files have for the output (`legacy` false)."""
    old, new = ("cls.predictions.transform.", "cls.predictions.bias"), "lm_predictions.lm_head."
    return [
        replace(row, theirs=row.theirs.replace(old[0], new).replace(old[1], f"{new}bias"))
        for row in rows
    ]  # fmt: skip


def as_published(config: ModelConfig) -> list[Weight]:
    return renamed(weights(config))


def preset(width: int, layers: int, heads: int) -> ShapeConfig:
    return ShapeConfig(
        "deberta", width=width, layers=layers, heads=heads, context_tokens=512, vocab_size=50265, init=NORMAL
    )


FAMILY = Family(
    name="deberta",
    model_type="deberta",
    architecture="DebertaForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="deberta.",
    ignored=IGNORED,
    copies={"cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight"},
    tasks=TASKS,
    adjust_head=adjust_head,
    spellings=(as_published,),
    presets={"deberta-base": preset(768, 12, 12), "deberta-large": preset(1024, 24, 16)},
)
