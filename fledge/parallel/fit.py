"""Which models can be split over which processes: of those that can't, the reason."""

from __future__ import annotations

from collections.abc import Iterator

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.nn.config import Disentangled, Heads, StackConfig
from fledge.parallel.config import SplitConfig


def check_split(config: ModelConfig, sizes: dict[str, int]) -> None:
    """Raises ConfigError for a model that processes can't share to answer with, before any of it is read."""
    for reason in split_reasons(config, sizes):
        raise ConfigError(f"{SplitConfig.at}.{reason}")


def split_reasons(config: ModelConfig, sizes: dict[str, int]) -> Iterator[str]:
    if sizes["tensor"] > 1:
        for stack in config.stacks.values():
            yield from of_tensor(stack, sizes["tensor"], sequence=False)
        yield from of_vocabulary(config, sizes["tensor"])
    if sizes["pipe"] > 1:
        yield from of_stages(config, sizes["pipe"])


def of_tensor(stack: StackConfig, n_parts: int, sequence: bool) -> Iterator[str]:
    mixers: list[Heads] = [layer.mixer for layer in stack.layers]
    for mixer in [*mixers, *([stack.cross] if stack.cross is not None else [])]:
        if mixer.n_heads % n_parts or mixer.n_kv_heads % n_parts:
            yield (
                f"tensor: expected heads and key/value heads that {n_parts} processes can share, got {mixer.n_heads} "
                f"and {mixer.n_kv_heads}; use a divisor of both"
            )
        if mixer.qk_norm == "whole":
            yield "tensor: expected queries and keys that are normalised per head, got a norm over all heads at once"
        if mixer.qk_norm == "own":
            yield "tensor: expected a norm of queries and keys that all heads share, got one of each head's own"
    for layer in stack.layers:
        if isinstance(layer.position, Disentangled):
            yield "tensor: expected scores of one head's own, got disentangled positions, which read whole maps"
        if layer.dense.hidden % n_parts:
            yield f"tensor: expected a divisor of the feed-forward's {layer.dense.hidden} channels, got {n_parts}"
    if sequence and stack.dropout:
        yield "sequence: expected model.dropout=0, as dropout is drawn for whole rows"
    if sequence and stack.conv is not None:
        yield "sequence: expected no convolution, which reads neighbouring tokens"


def of_vocabulary(config: ModelConfig, n_parts: int) -> Iterator[str]:
    if n_parts > (config.tokens or config.vocab_size):
        yield f"tensor: expected at most the vocabulary's {config.vocab_size} entries, got {n_parts}"


def of_stages(config: ModelConfig, n_stages: int) -> Iterator[str]:
    if len(config.stacks) > 1:
        yield "pipe: expected a decoder or an encoder, got both: every decoder stage would read the encoder's output"
    n_layers = len(config.stack.layers)
    if n_stages > n_layers:
        yield f"pipe: expected at most the model's {n_layers} layers, got {n_stages}"
