"""Which models go on which mesh. What can't be split exactly is refused, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.nn.config import Disentangled, Heads, Moe, StackConfig
from fledge.train.config import TrainConfig


def check_model(config: ModelConfig, train: TrainConfig, sizes: dict[str, int]) -> None:
    """Raises ConfigError for a model that a mesh of these sizes can't train exactly."""
    for reason in reasons(config, train, sizes):
        raise ConfigError(f"train.parallel.{reason}")


def reasons(config: ModelConfig, train: TrainConfig, sizes: dict[str, int]) -> Iterator[str]:
    readers = sizes["data"] * sizes["shard"]
    yield from of_steps(train, sizes)
    for stack in config.stacks.values():
        yield from of_mixtures(stack, readers, train, sizes)
        if stack.norm.kind == "batch":
            yield "data: expected layer or rms norms, got batch, whose averages differ from process to process"
        if sizes["tensor"] > 1:
            yield from of_tensor(stack, sizes["tensor"], train.parallel.sequence)
    if sizes["tensor"] > (config.tokens or config.vocab_size):
        yield f"tensor: expected at most the vocabulary's {config.vocab_size} entries, got {sizes['tensor']}"
    if sizes["pipe"] > 1:
        yield from of_pipe(config, train, sizes)


def of_steps(train: TrainConfig, sizes: dict[str, int]) -> Iterator[str]:
    """What of a run's settings asks for a whole model, or a whole row, in each process."""
    fully, split = sizes["shard"] > 1 and train.parallel.shard_stage > 1, sizes["tensor"] > 1 or sizes["pipe"] > 1
    if train.watch_every_steps and (split or sizes["shard"] > 1):
        yield "data: expected nothing else beside train.watch_every_steps, which measures whole layers"
    if train.compile != "off" and (split or fully):
        yield "data: expected at most shard_stage=1 beside it for train.compile, which has not been tried with more"
    if train.precision != "float32" and split:
        yield "data: expected at most shard beside it for train.precision below float32, which has not been tried"
    if train.dropout.layers and fully:
        yield "shard_stage: expected 1 for train.dropout.layers, as processes that share blocks would leave out others"
    if sizes["tensor"] > 1 and (train.dropout.attention or train.dropout.feed_forward):
        yield "tensor: expected no dropout inside of attention and feed-forward, which is drawn for all heads at once"
    if train.parallel.sequence and train.dropout.any:
        yield "sequence: expected no train.dropout, which is drawn for whole rows"


def of_mixtures(stack: StackConfig, readers: int, train: TrainConfig, sizes: dict[str, int]) -> Iterator[str]:
    mixtures = [layer.ffn for layer in stack.layers if isinstance(layer.ffn, Moe)]
    if not mixtures:
        return
    if readers > 1 and any(moe.balance for moe in mixtures):
        yield "data: expected a loss that is a sum over rows, got the load balance of experts, which couples them"
    if sizes["shard"] > 1 and train.parallel.shard_stage > 1:
        yield "shard_stage: expected 1 for a mixture of experts, as an expert that no token chose has no gradient"
    for axis in ("tensor", "pipe"):
        if sizes[axis] > 1:
            yield f"{axis}: expected 1 for a mixture of experts, which is not split yet; use data or shard"


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
    for layer in stack.layers:
        if isinstance(layer.position, Disentangled):
            yield "tensor: expected scores of one head's own, got disentangled positions, which read whole maps"
        if layer.dense.hidden % n_parts:
            yield f"tensor: expected a divisor of the feed-forward's {layer.dense.hidden} channels, got {n_parts}"
    if sequence and stack.dropout:
        yield "sequence: expected model.dropout=0, as dropout is drawn for whole rows"
    if sequence and stack.conv is not None:
        yield "sequence: expected no convolution, which reads neighbouring tokens"


def of_pipe(config: ModelConfig, train: TrainConfig, sizes: dict[str, int]) -> Iterator[str]:
    if len(config.stacks) > 1:
        yield "pipe: expected a decoder or an encoder, got both: every decoder stage would read the encoder's output"
    n_layers = len(config.stack.layers)
    if sizes["pipe"] > n_layers:
        yield f"pipe: expected at most the model's {n_layers} layers, got {sizes['pipe']}"
    if sizes["shard"] > 1 and train.parallel.shard_stage > 1:
        yield "shard_stage: expected 1 beside a pipe, as a stage has several micro-batches in flight; use it, or data"
    if train.parallel.sequence:
        yield "sequence: expected no pipe, which hands whole rows on"
