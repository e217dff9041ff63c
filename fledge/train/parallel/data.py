"""Rows by process, and gradients summed over the processes that read other rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from fledge.errors import ConfigError
from fledge.parallel.mesh import Line
from fledge.train.config import TrainConfig

BUCKET_BYTES = 32 << 20
"""Gradients travel together up to so many bytes: fewer messages, and little memory for their copies."""


def check_rows(train: TrainConfig, n_processes: int) -> None:
    """Raises ConfigError where the global batch can't be cut into equal micro-batches for every reader."""
    if train.micro_rows == "auto":
        raise ConfigError("train.micro_rows: expected a number for many processes, got auto, which measures one")
    readers = train.parallel.readers(n_processes)
    each = readers * max(1, train.micro_rows)
    if train.rows % each:
        nearest = max(1, round(train.rows / each)) * each
        micro = f" of train.micro_rows={train.micro_rows}" if train.micro_rows else ""
        raise ConfigError(
            f"train.rows: expected a multiple of {each} for {readers} processes (data x shard){micro}, got "
            f"{train.rows}; nearest is {nearest}"
        )


def own_rows(n_rows: int, line: Line) -> range:
    """The rows of a global batch that the `line.index`-th reader takes."""
    share = n_rows // line.size
    return range(line.index * share, (line.index + 1) * share)


def sum_over(tensors: Iterable[Tensor], line: Line) -> None:
    """Replace tensors by their sum over the line, in place. Sums, never means: every term of the loss is already
    divided by its global weight."""
    if line.size == 1:
        return
    for bucket in buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat, group=line.group)
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, in order, together until they reach BUCKET_BYTES."""
    bucket: list[Tensor] = []
    n_bytes = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if bucket and (n_bytes + size > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, n_bytes = [], 0
        bucket.append(tensor)
        n_bytes += size
    if bucket:
        yield bucket
