"""The type that a step computes in, beside weights and optimizer state that stay float32; for float16 the loss scale.

Products of matrices and attention are computed in the lower type, norms, softmaxes, losses and the residual sum in
float32 (torch's autocast). Gradients arrive in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fledge.device import DTYPES
from fledge.errors import ConfigError
from fledge.optim.optimizer import gradients
from fledge.train.checkpointing import State

SMALLEST, LARGEST = 1.0, 2.0**24
GROWTH, BACKOFF = 2.0, 0.5  # powers of two: scaling and unscaling are exact


class Precision:
    """How a run's steps compute. The loss scale and its counters are in the run's `state`, so that they go on with it.

    float16 holds no number below 6e-8: the loss is multiplied by a scale before the backward pass and the summed
    gradients divided by it after the last micro-batch. A step whose gradients overflow is left out and halves the
    scale; after `grow_after` steps without one it doubles (Micikevicius et al. 2018, arXiv 1710.03740, §3.2).
    """

    def __init__(self, name: str, device: torch.device, state: State, first: float = 65536.0, grow_after: int = 2000):
        self.dtype, self.device, self.state, self.grow_after = DTYPES[name], device, state, grow_after
        self.scales = self.dtype == torch.float16
        if self.dtype == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigError("train.precision: expected a GPU that has bfloat16, got one without; use float16")
        if self.scales and not state.loss_scale:
            state.loss_scale = first

    def computing(self) -> AbstractContextManager[object]:
        """Around the forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaled(self, objective: Tensor) -> Tensor:
        """What to call `backward` on."""
        return objective * self.state.loss_scale if self.scales else objective

    @torch.no_grad()
    def unscale(self, parameters: Sequence[Tensor]) -> None:
        """Once a step, on the sum over micro-batches."""
        if self.scales:
            torch._foreach_mul_(gradients(list(parameters)), 1.0 / self.state.loss_scale)

    def held(self) -> None:
        """Note a step whose loss and gradients were finite."""
        if not self.scales:
            return
        state = self.state
        state.since_overflow += 1
        if state.since_overflow >= self.grow_after:
            state.loss_scale, state.since_overflow = min(LARGEST, state.loss_scale * GROWTH), 0

    def backs_off(self) -> bool:
        """Halve the scale after a loss or gradient that was not finite; False where the scale can't be the cause."""
        state = self.state
        if not self.scales or state.loss_scale <= SMALLEST:
            return False
        state.loss_scale, state.since_overflow = max(SMALLEST, state.loss_scale * BACKOFF), 0
        state.overflows += 1
        return True
