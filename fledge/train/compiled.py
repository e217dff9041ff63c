"""torch.compile for training passes: block by block or the model whole. Validation and samples stay as they are, so
that their many shapes compile nothing; names of weights stay too.

Attention over packed or padded rows is left out of what is compiled: its pieces change with every batch, and a
compilation for each would never end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fledge.batch import Packed, Padded
from fledge.errors import ConfigError
from fledge.log import say
from fledge.model.transformer import Transformer
from fledge.nn.attention import Attention, Context, CrossAttention
from fledge.nn.block import Stack

CHANGING = (Packed, Padded)
COMPILERS = ("g++", "clang++", "c++")
# rough, for a small model on one quiet core; bench/train_modes.py measures them
BLOCK_SECONDS, LAYER_SECONDS = 30, 12


def compile_training(model: Transformer, mode: str, device: torch.device, backend: str = "inductor") -> str:
    """Have training passes of `model` run compiled: mode `blocks` or `model`; gives what to say before the first step.

    Raises ConfigError where there is no compiler, and for a bias that blocks share and compute again.
    """
    if backend == "inductor":
        check_compiler(device)
    stacks = [stack for stack in (model.encoder, model.decoder) if isinstance(stack, Stack)]
    for stack in stacks:
        if stack.checkpoints_blocks and stack.bias is not None and next(stack.bias.parameters(), None) is not None:
            raise ConfigError(
                "train.compile: expected off with train.checkpoint_blocks for a model whose layers learn one bias "
                f"together ({model.config.family}), got {mode}; choose one of the two"
            )
    blocks = [block for stack in stacks for block in stack.blocks()]
    for block in blocks:
        leave_out_changing(block.attention)
        if block.cross is not None:
            leave_out_changing_source(block.cross)
    if mode == "blocks":
        for block in blocks:
            in_training(block, "forward", backend)
        seconds = BLOCK_SECONDS * len(stacks)
    else:
        in_training(model, "hidden", backend)
        seconds = LAYER_SECONDS * len(blocks)
    what = "one of each kind of block" if mode == "blocks" else f"the whole model, {len(blocks)} layers"
    return (
        f"compiling {what}: the first step takes about {seconds} s more, or little where it was compiled before "
        "(TORCHINDUCTOR_CACHE_DIR names the cache)"
    )


def check_compiler(device: torch.device) -> None:
    """Raises ConfigError if what torch.compile needs is not installed."""
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((named,) if named else COMPILERS)):
        raise ConfigError(
            f"train.compile: expected a C++ compiler ({named or ', '.join(COMPILERS)}), found none; install g++ "
            "(Debian and Ubuntu: apt-get install g++), name one by CXX=…, or set train.compile=off"
        )
    if device.type == "cuda":
        try:
            import triton  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
        except ImportError:
            raise ConfigError(
                "train.compile: expected the package triton for a GPU, found none; pip install triton, or set "
                "train.compile=off"
            ) from None


def in_training(module: nn.Module, name: str, backend: str) -> None:
    """Replace a method of this object by one that is compiled while the module trains."""
    plain: Callable[..., Tensor] = getattr(type(module), name)
    # inductor's own generator would draw another dropout than the plain pass
    options: dict[str, Any] = {"options": {"fallback_random": True}} if backend == "inductor" else {}
    fast = torch.compile(plain, backend=backend, **options)

    def chosen(self: nn.Module, *given: Any, **named: Any) -> Tensor:
        return (fast if self.training and torch.is_grad_enabled() else plain)(self, *given, **named)

    setattr(module, name, MethodType(chosen, module))  # bound, so that a copy of the module has a copy's own


def leave_out_changing(attention: Attention) -> None:
    """Attention over rows whose documents change with every batch is not compiled; the maps around it are."""
    attention.mix = MethodType(mix, attention)  # type: ignore[method-assign]


def leave_out_changing_source(cross: CrossAttention) -> None:
    cross.forward = MethodType(cross_forward, cross)  # type: ignore[method-assign]


def mix(self: Attention, q: Tensor, k: Tensor, v: Tensor, x: Tensor, context: Context, index: int) -> Tensor:
    run = plain_mix if isinstance(context.layout, CHANGING) else Attention.mix
    return run(self, q, k, v, x, context, index)


def cross_forward(self: CrossAttention, x: Tensor, context: Context) -> Tensor:
    layouts = (context.layout, context.source_tokens[1] if context.source_tokens is not None else None)
    run = plain_cross if any(isinstance(one, CHANGING) for one in layouts) else CrossAttention.forward
    return run(self, x, context)


@torch.compiler.disable
def plain_mix(self: Attention, *given: Any) -> Tensor:
    return Attention.mix(self, *given)


@torch.compiler.disable
def plain_cross(self: CrossAttention, *given: Any) -> Tensor:
    return CrossAttention.forward(self, *given)


class FirstStep:
    """Says how long the first step of a compiled run took, once."""

    def __init__(self, notice: str):
        self.waiting = bool(notice)
        if notice:
            say(notice)

    def done(self, seconds: float) -> None:
        if self.waiting:
            self.waiting = False
            say(f"compiled: the first step took {seconds:.1f} s")
