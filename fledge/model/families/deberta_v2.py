"""DeBERTa v2 and v3 (He et al. 2021, arXiv 2111.09543): v1 with logarithmic distances that go through the content's own
maps, and in the largest a convolution beside the first block."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families.deberta import (
    IGNORED,
    adjust_head,
    blocks,
    in_file,
    lm_rows,
    model,
    position_of,
    refusals,
    renamed,
    terms_of,
)
from fledge.model.families.encoder import (
    NORMAL,
    POOLED_ACTIVATIONS,
    Keys,
    Size,
    common,
    embeddings,
    linears,
    only,
    pooled_activation,
    size_of_file,
    size_of_shape,
)
from fledge.model.families.family import Family, Weight, flag, integer
from fledge.model.families.task import Head, Task
from fledge.nn.config import MAX_CONTEXT, Conv, Disentangled, bounded

DEFAULTS = Size(1536, 24, 24, 6144, "gelu", 1e-7, 512, 0, 128100)
BUCKETS = 256
TASKS = (
    Task("lm", "DebertaV2ForMaskedLM", lm=True),
    Task("base", "DebertaV2Model", base=True),
    Task(
        "sequence", "DebertaV2ForSequenceClassification",
        heads=(Head("sequence", "first", None, "classifier", "pooler.dense", activation="gelu"),),
    ),
    Task("token", "DebertaV2ForTokenClassification", heads=(Head("token", "each", None, "classifier"),)),
    Task("span", "DebertaV2ForQuestionAnswering", heads=(Head("span", "each", 2, "qa_outputs"),)),
    Task(
        "choice", "DebertaV2ForMultipleChoice",
        heads=(Head("choice", "first", 1, "classifier", "pooler.dense", activation="gelu"),),
    ),
)  # fmt: skip


def build(shape: ShapeConfig) -> ModelConfig:
    size = size_of_shape(shape, "gelu", 1e-7, kinds=0)
    buckets = min(BUCKETS, size.rows // 2)
    position = Disentangled(size.rows, buckets if buckets >= 4 else 0, shared_maps=True, norm=True)
    conv = Conv(shape.conv_kernel, activation="gelu") if shape.conv_kernel else None
    return model(
        "deberta-v2", size, position, 2, False, True, tie=shape.tie is not False, init=shape.init,
        dropout=shape.dropout, conv=conv,
    )  # fmt: skip


def read(raw: dict[str, Any]) -> ModelConfig:
    size, terms = size_of_file(raw, DEFAULTS, Keys()), terms_of(raw)
    refusals(raw, size.width)
    only(raw, "attention_head_size", size.width // size.heads, "heads divide the width")
    shared, norm = flag(raw, "share_att_key", False), norm_of(raw)
    position = position_of(raw, size, terms, buckets=buckets_of(raw), shared_maps=shared, norm=norm)
    if norm and position is None:
        raise ConfigError("config.json: norm_rel_ebd: expected relative_attention to use the norm, got none")
    ids = common(raw, size.vocab_size, {"pad": 0})
    ids["tie"] = ids["tie"] or not flag(raw, "legacy", True)
    learned = flag(raw, "position_biased_input", True)
    return model("deberta-v2", size, position, len(terms), learned, True, conv=conv_of(raw), **ids)


def buckets_of(raw: dict[str, Any]) -> int:
    value = raw.get("position_buckets", -1)
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        return 0
    bounded("config.json: position_buckets", value, 1, MAX_CONTEXT)
    return int(value)


def norm_of(raw: dict[str, Any]) -> bool:
    value = raw.get("norm_rel_ebd", "none")
    parts = [part.strip() for part in value.lower().split("|")] if isinstance(value, str) else [value]
    if any(part not in ("none", "layer_norm") for part in parts):
        raise ConfigError(f"config.json: norm_rel_ebd: expected none or layer_norm, got {str(value)[:40]!r}")
    return "layer_norm" in parts


def conv_of(raw: dict[str, Any]) -> Conv | None:
    kernel = integer(raw, "conv_kernel_size", 0)
    if not kernel:
        return None
    return Conv(kernel, integer(raw, "conv_groups", 1), pooled_activation(raw, "conv_act", "tanh"))


def write(config: ModelConfig) -> dict[str, Any]:
    position, conv = config.stack.layers[0].position, config.stack.conv
    result = in_file(config, True)
    if isinstance(position, Disentangled):
        result["position_buckets"] = position.buckets or -1
        result["share_att_key"] = position.shared_maps
        result["norm_rel_ebd"] = "layer_norm" if position.norm else "none"
    if conv is not None:
        name = next(name for name, own in POOLED_ACTIVATIONS.items() if own == conv.activation)
        result |= {"conv_kernel_size": conv.kernel, "conv_groups": conv.groups, "conv_act": name}
    return result


def weights(config: ModelConfig) -> list[Weight]:
    theirs, ours = "deberta.encoder.layer.{i}.attention.self.", "encoder.layers.{i}.attention."
    position = config.stack.layers[0].position
    table = linears(theirs, ours, {"query_proj": "qkv.q", "key_proj": "qkv.k", "value_proj": "qkv.v"})
    if isinstance(position, Disentangled):
        table.append(Weight("deberta.encoder.rel_embeddings.weight", ("encoder.distances.weight",)))
        if position.norm:
            table += linears("deberta.encoder.", "encoder.distances.", {"LayerNorm": "norm"})
        if position.content_to_position and not position.shared_maps:
            table += linears(theirs, ours, {"pos_key_proj": "distances.k"})
        if position.position_to_content and not position.shared_maps:
            table += linears(theirs, ours, {"pos_query_proj": "distances.q"})
    if config.stack.conv is not None:
        table += linears("deberta.encoder.conv.", "encoder.conv.", {"LayerNorm": "norm"})
        table += [Weight(f"deberta.encoder.conv.conv.{end}", (f"encoder.conv.{end}",)) for end in ("weight", "bias")]
    return [*embeddings("deberta.", config), *table, *blocks(), *lm_rows(config)]


def as_published(config: ModelConfig) -> list[Weight]:
    return renamed(weights(config))


def preset(width: int, layers: int, heads: int, vocab_size: int = 128100, conv_kernel: int = 0) -> ShapeConfig:
    return ShapeConfig(
        "deberta-v2", width=width, layers=layers, heads=heads, context_tokens=512, vocab_size=vocab_size,
        conv_kernel=conv_kernel, init=NORMAL,
    )  # fmt: skip


FAMILY = Family(
    name="deberta-v2",
    model_type="deberta-v2",
    architecture="DebertaV2ForMaskedLM",
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
    presets={
        "deberta-v3-xsmall": preset(384, 12, 6),
        "deberta-v3-small": preset(768, 6, 12),
        "deberta-v3-base": preset(768, 12, 12),
        "deberta-v3-large": preset(1024, 24, 16),
        "mdeberta-v3-base": preset(768, 12, 12, 251000),
        "deberta-v2-xlarge": preset(1536, 24, 24, conv_kernel=3),
        "deberta-v2-xxlarge": preset(1536, 48, 24, conv_kernel=3),
    },
)
