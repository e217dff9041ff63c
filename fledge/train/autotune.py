"""How many rows fit in memory at once: the largest divisor of the batch, counted first and then tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fledge.batch import slice_rows
from fledge.device import Device, available_bytes
from fledge.errors import ConfigError
from fledge.model.memory import training_memory
from fledge.nn.live_bytes import LiveBytes
from fledge.train.config import TrainConfig
from fledge.train.recipe import Recipe
from fledge.train.trial import trial_loop

MEMORY_SHARE = 0.9  # of what is free: allocators round up, and kernels have scratch of their own


@dataclass(frozen=True)
class Tried:
    """`micro_rows` rows at once: bytes `counted` from the config (None: they can't be), bytes `measured` in a trial
    (None: none was made, or it ran out of memory), and whether they fit."""

    micro_rows: int
    counted: int | None
    measured: int | None
    fits: bool


Measure = Callable[[int], int | None]


def divisors(rows: int) -> list[int]:
    """Numbers of rows that a batch can be computed in, the largest first."""
    return [n for n in range(rows, 0, -1) if rows % n == 0]


def largest_that_fits(rows: int, limit: int, count: Measure, measure: Measure) -> list[Tried]:
    """Trials, the last of which is the answer: what is counted above `limit` bytes is not tried.

    Raises ConfigError if not even one row fits.
    """
    tried: list[Tried] = []
    for micro_rows in divisors(rows):
        counted = count(micro_rows)
        if counted is not None and counted > limit:
            tried.append(Tried(micro_rows, counted, None, False))
            continue
        measured = measure(micro_rows)
        tried.append(Tried(micro_rows, counted, measured, measured is not None and measured <= limit))
        if tried[-1].fits:
            return tried
    need = tried[-1].measured or tried[-1].counted
    raise ConfigError(
        f"train.micro_rows: expected one row to fit in {limit:,} bytes, got {need or 'more than there are':,} for it; "
        "set train.checkpoint_blocks=true, a shorter train.row_tokens, or a smaller model"
    )


def memory_limit(recipe: Recipe, device: Device, share: float) -> int:
    """Bytes that training may take, weights included: `share` of what is free now and what the weights hold. Raises
    ConfigError where the system does not say."""
    free = available_bytes(device.device)
    if free is None:
        raise ConfigError(
            f"train.micro_rows: expected a device that tells its free memory, got {device.device}; set a number"
        )
    return int(share * (free + sum(p.nbytes for p in recipe.model.parameters())))


def counted_bytes(recipe: Recipe, train: TrainConfig, micro_rows: int) -> int | None:
    """Peak bytes of a step of AdamW in float32, counted; None for models whose shapes depend on their data."""
    row_tokens = train.row_tokens or recipe.model.config.context_tokens
    try:
        memory = training_memory(recipe.model.config, micro_rows, row_tokens, train.checkpoint_blocks)
    except ConfigError:
        return None
    held = memory.gradients if micro_rows < train.rows else 0  # of the micro-batches before
    return memory.peak + held


def measured_bytes(recipe: Recipe, train: TrainConfig, device: Device, micro_rows: int) -> int | None:
    """Peak bytes of accumulating the gradients of one micro-batch, or of two where there are more, beside weights,
    optimizer state and running mean; None if memory ran out. No weight is moved."""
    rows = min(train.rows, 2 * micro_rows)
    part = replace(train, rows=rows, micro_rows=micro_rows, compile="off")
    statistics = [(p, p.detach().clone()) for p in recipe.model.parameters() if not p.requires_grad]
    batch = slice_rows(recipe.batch(0), 0, rows)
    try:
        if device.device.type == "cuda":
            return on_gpu(recipe, part, device, batch)
        with LiveBytes() as live:
            live.add(*recipe.model.parameters())
            loop = trial_loop(recipe, part, device)
            loop.accumulate(batch, recipe.weights(batch))
            loop.optimizer.zero_grad()
            return live.peak
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    finally:
        with torch.no_grad():
            for parameter, before in statistics:
                parameter.copy_(before)
        recipe.model.zero_grad(set_to_none=True)


def on_gpu(recipe: Recipe, part: TrainConfig, device: Device, batch) -> int:  # type: ignore[no-untyped-def]
    torch.cuda.reset_peak_memory_stats(device.device)
    loop = trial_loop(recipe, part, device)
    for _ in range(2):  # kernels may ask for their scratch at the second call only
        loop.accumulate(batch, recipe.weights(batch))
    loop.optimizer.zero_grad()
    return torch.cuda.max_memory_allocated(device.device)


def choose_micro_rows(recipe: Recipe, train: TrainConfig, device: Device, limit: int) -> list[Tried]:
    """The trials that end in the largest micro-batch for `recipe` on `device`, within `limit` bytes in all."""
    return largest_that_fits(
        train.rows,
        limit,
        lambda n: counted_bytes(recipe, train, n) if device.device.type == "cpu" else None,
        lambda n: measured_bytes(recipe, train, device, n),
    )
