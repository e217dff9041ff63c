"""Which models train on which mesh. What can't be split exactly is refused, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from fledge.errors import ConfigError
from fledge.model.config import ModelConfig
from fledge.nn.config import Moe, StackConfig
from fledge.parallel.fit import of_stages, of_tensor, of_vocabulary
from fledge.train.config import TrainConfig


def check_model(config: ModelConfig, train: TrainConfig, sizes: dict[str, int]) -> None:
    """Raises ConfigError for a model that a mesh of these sizes can't train exactly."""
    for reason in reasons(config, train, sizes):
        raise ConfigError(f"train.parallel.{reason}")


def check_tuned(beside: bool, whole: bool, sizes: dict[str, int]) -> None:
    """Raises ConfigError for a mesh that can't train what stands `beside` a base's weights, or a part of them (not
    `whole`)."""
    if beside and sizes["tensor"] > 1:
        raise ConfigError(
            "train.parallel.tensor: expected 1 for adapters and value heads, whose matrices are not cut yet; use data "
            "or shard"
        )
    if (beside or not whole) and sizes["pipe"] > 1:
        raise ConfigError(
            "train.parallel.pipe: expected 1 where a part is trained, as a stage may have nothing to train and hand no "
            "gradient on; use data or shard"
        )


def reasons(config: ModelConfig, train: TrainConfig, sizes: dict[str, int]) -> Iterator[str]:
    readers = sizes["data"] * sizes["shard"]
    yield from of_steps(train, sizes)
    for stack in config.stacks.values():
        yield from of_mixtures(stack, readers, train, sizes)
        if stack.norm.kind == "batch":
            yield "data: expected layer or rms norms, got batch, whose averages differ from process to process"
        if sizes["tensor"] > 1:
            yield from of_tensor(stack, sizes["tensor"], train.parallel.sequence)
    yield from of_vocabulary(config, sizes["tensor"])
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


def of_pipe(config: ModelConfig, train: TrainConfig, sizes: dict[str, int]) -> Iterator[str]:
    yield from of_stages(config, sizes["pipe"])
    if sizes["shard"] > 1 and train.parallel.shard_stage > 1:
        yield "shard_stage: expected 1 beside a pipe, as a stage has several micro-batches in flight; use it, or data"
    if train.parallel.sequence:
        yield "sequence: expected no pipe, which hands whole rows on"
