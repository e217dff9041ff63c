"""BigBird (Zaheer et al. 2020, arXiv 2007.14062): BERT's body with block-sparse attention.

Random blocks: transformers draws them in training only; at inference it puts all of them on the first block, whose keys
so count more than once. A folder read here computes the latter, always (see nn.config.BigBird). Blocks are counted in
each document by itself, where transformers counts those of the padded batch; documents of few blocks are attended to
in full, as there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from fledge.errors import ConfigError
from fledge.model.config import HeadConfig, ModelConfig, ShapeConfig
from fledge.model.families.encoder import (
    BERT_BLOCK,
    ENDS,
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
    output,
    size_in_file,
    size_of_file,
    size_of_shape,
)
from fledge.model.families.family import Family, Weight, choice, flag, integer
from fledge.model.families.task import Head, Task
from fledge.nn.config import BigBird

BLOCK, RANDOM = 64, 3
IDS: dict[str, int | None] = {"bos": 1, "eos": 2, "pad": 0, "sep": 66}
DEFAULTS = Size(768, 12, 12, 3072, "gelu_tanh", 1e-12, 4096, 2, 50358)
POOLED = Head("pooler", "first", 0, dense="bert.pooler")
TASKS = (
    Task("lm", "BigBirdForMaskedLM", lm=True, heads=(POOLED,)),
    Task("base", "BigBirdModel", heads=(POOLED,), base=True),
    Task(
        "pretraining", "BigBirdForPreTraining", lm=True,
        heads=(Head("next_sentence", "first", 2, "cls.seq_relationship", "bert.pooler"),),
    ),
    Task(
        "sequence", "BigBirdForSequenceClassification",
        heads=(POOLED, Head("sequence", "first", None, "classifier.out_proj", "classifier.dense")),
    ),
    Task("token", "BigBirdForTokenClassification", heads=(POOLED, Head("token", "each", None, "classifier"))),
    Task("choice", "BigBirdForMultipleChoice", heads=(Head("choice", "first", 1, "classifier", "bert.pooler"),)),
)  # fmt: skip


def pattern_of(kind: str, block: int, n_random: int) -> BigBird | None:
    return BigBird(block, n_random, 0, True, (5 + 2 * n_random) * block) if kind == "block_sparse" else None


def model(size: Size, pattern: BigBird | None, bias: bool, rescaled: bool, **more: Any) -> ModelConfig:
    layer = layer_of(size)
    layer = replace(layer, mixer=replace(layer.mixer, qkv_bias=bias), pattern=pattern)
    config = body("big_bird", size, (layer,) * size.layers, **more)
    assert config.encoder is not None
    inputs = replace(config.encoder.inputs, scale=math.sqrt(size.width) if rescaled else 1.0)
    return replace(config, encoder=replace(config.encoder, inputs=inputs))


def build(shape: ShapeConfig) -> ModelConfig:
    size = size_of_shape(shape, "gelu_tanh", 1e-12, kinds=2)
    pattern = pattern_of("block_sparse", shape.block or BLOCK, shape.random_blocks or RANDOM)
    pooler = (POOLED.config(0, (), ""),)  # transformers' masked-LM class has one, though it is not used
    tie = shape.tie is not False
    return model(size, pattern, True, False, tie=tie, init=shape.init, dropout=shape.dropout, heads=pooler)


def read(raw: dict[str, Any]) -> ModelConfig:
    no_decoder(raw)
    size = size_of_file(raw, DEFAULTS, Keys(), "gelu_new")
    kind = choice(raw, "attention_type", {"block_sparse": "block_sparse", "original_full": ""}, "block_sparse")
    pattern = pattern_of(kind, integer(raw, "block_size", BLOCK), integer(raw, "num_random_blocks", RANDOM))
    bias, rescaled = flag(raw, "use_bias", True), flag(raw, "rescale_embeddings", False)
    return model(size, pattern, bias, rescaled, **common(raw, size.vocab_size, IDS))


def adjust_head(head: HeadConfig, config: ModelConfig, raw: dict[str, Any]) -> HeadConfig:
    """A classifier's activation is the blocks'."""
    if head.name != "sequence":
        return head
    return replace(head, activation=config.stack.layers[0].dense.activation)


def write(config: ModelConfig) -> dict[str, Any]:
    layer, inputs = config.stack.layers[0], config.stack.inputs
    pattern = layer.pattern
    if pattern is not None and (
        not isinstance(pattern, BigBird) or pattern != pattern_of("block_sparse", pattern.block, pattern.n_random)
    ):
        raise ConfigError("model: BigBird's folder format has block-sparse attention as transformers computes it")
    blocks = {"block_size": pattern.block, "num_random_blocks": pattern.n_random} if pattern else {}
    return {
        **size_in_file(config, Keys(), ("gelu_new",)),
        "attention_type": "block_sparse" if pattern else "original_full",
        **blocks,
        "use_bias": layer.mixer.qkv_bias,
        "rescale_embeddings": inputs.scale != 1.0,
        **more_ids(config),
    }


def weights(config: ModelConfig) -> list[Weight]:
    block, ours = "bert.encoder.layer.{i}.", "encoder.layers.{i}."
    maps = {name: own for name, own in BERT_BLOCK.items() if name.startswith("attention.self.")}
    rest = {name: own for name, own in BERT_BLOCK.items() if name not in maps}
    biased = config.stack.layers[0].mixer.qkv_bias
    return [
        *embeddings("bert.", config),
        *linears(block, ours, maps, ENDS if biased else ENDS[:1]),
        *linears(block, ours, rest),
        *output(
            "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias",
            "cls.predictions.decoder", config,
        ),
    ]  # fmt: skip


def preset(width: int, layers: int, heads: int) -> ShapeConfig:
    return ShapeConfig(
        "big_bird", width=width, layers=layers, heads=heads, context_tokens=4096, vocab_size=50358, init=NORMAL
    )


FAMILY = Family(
    name="big_bird",
    model_type="big_bird",
    architecture="BigBirdForMaskedLM",
    build=build,
    read=read,
    write=write,
    weights=weights,
    prefix="bert.",
    ignored=(".position_ids", "cls.predictions.decoder.bias"),
    copies={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
    tasks=TASKS,
    adjust_head=adjust_head,
    presets={"bigbird-roberta-base": preset(768, 12, 12), "bigbird-roberta-large": preset(1024, 24, 16)},
)
