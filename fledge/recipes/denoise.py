"""Objectives that spoil a text and have it written again (span corruption, BART's noises), or split it (prefix LM)."""

from __future__ import annotations

from dataclasses import replace

from fledge.data.denoise import prefix_split, span_corruption, text_noise
from fledge.data.denoise_batches import DenoiseBatches, PrefixBatches
from fledge.data.keyed_batches import KeyedBatches
from fledge.data.segments import Segments, frame_of
from fledge.data.shards import Shard
from fledge.data.spans import text_tokens
from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.model.variants import OWN_FORMAT
from fledge.nn.config import Prefix
from fledge.recipes.config import PretrainConfig
from fledge.recipes.reading import Reading, keyed_reading
from fledge.text.tokenizer import Tokenizer


def denoise_reading(config: PretrainConfig, tokenizer: Tokenizer, model: ModelConfig, row_tokens: int) -> Reading:
    """How objectives `spans`, `denoise` and `prefix` read a shard. `row_tokens`: of a source, or of a decoder's row."""

    def batches(shard: Shard, rows: int, seed: int) -> KeyedBatches:
        if model.encoder is None:
            return PrefixBatches(shard, tokenizer, row_tokens, rows, seed, config.data.cross_documents)
        return source_batches(config, shard, tokenizer, model, row_tokens, rows, seed)

    return keyed_reading(batches)


def source_batches(
    config: PretrainConfig,
    shard: Shard,
    tokenizer: Tokenizer,
    model: ModelConfig,
    row_tokens: int,
    rows: int,
    seed: int,
) -> DenoiseBatches:
    """Batches of an encoder–decoder: sources of at most `row_tokens`."""
    target_tokens = model.context_tokens
    if config.objective == "spans":
        corruption = span_corruption(tokenizer, config.spans)
        text, wanted = text_tokens(row_tokens, config.spans)
        if wanted > target_tokens:
            raise ConfigError(
                f"spans: expected targets of at most the context of {target_tokens} tokens, got {wanted}; lower "
                "spans.rate or train.row_tokens"
            )
    elif config.objective == "denoise":
        corruption = text_noise(tokenizer, config.noise)
        text = row_tokens - frame_of(tokenizer).n_tokens
    else:
        corruption = prefix_split(tokenizer)
        text = row_tokens - 1  # eos
    segments = Segments(shard, tokenizer, text, 2, config.data.cross_documents)
    start, most = model.special_ids["start"], (row_tokens, target_tokens)
    layout = config.data.layout
    return DenoiseBatches(segments, corruption, start, tokenizer.pad_id or 0, most, rows, seed, layout)


def with_prefix(config: ModelConfig) -> ModelConfig:
    """A decoder whose tokens all see the prefix. No published format has such a model, so it is of fledge's own."""
    assert config.decoder is not None
    if any(layer.pattern is not None or layer.window is not None for layer in config.decoder.layers):
        raise ConfigError("objective: prefix expects a decoder that sees everything before, got a window or a pattern")
    layers = tuple(replace(layer, pattern=Prefix()) for layer in config.decoder.layers)
    return replace(config, decoder=replace(config.decoder, layers=layers), family=OWN_FORMAT)
