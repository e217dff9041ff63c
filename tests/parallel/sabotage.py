"""Faults planted into a parallel run, each of which an equality test must find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from fledge.batch import slice_rows
from fledge.optim import muon
from fledge.optim.optimizer import norm_of_all
from fledge.parallel import exchange, tensor
from fledge.train.loop import Loop
from fledge.train.parallel import many

ACCUMULATE, DIVIDE = Loop.accumulate, FSDPModule.set_gradient_divide_factor
ORTHOGONALISED = muon.orthogonalised


def by_own_weight(loop: Any, batch: Any, weights: Any) -> Any:
    """Each process divides by the weight of its own rows: the mean of means, where they differ."""
    rows = loop.parallel.rows(loop.config.rows)
    own = loop.run.recipe.weights(slice_rows(batch, rows.start, rows.stop))
    readers = loop.config.rows // len(rows)
    return ACCUMULATE(loop, batch, {name: value * readers for name, value in own.items()})


def without_partial(*arguments: Any) -> Any:
    cuts, _ = tensor.split_tensor(*arguments)
    return cuts, set()


def untied(*arguments: Any) -> Any:
    from fledge.train.parallel import pipe

    made = pipe.split_pipe(*arguments)
    made.held_twice.clear()
    return made


def bias_by_all(self: Any, x: Any) -> Any:
    return self.leave(F.linear(x, self.weight, self.bias))


def by_halves(matrix: Tensor, *how: Any) -> Tensor:
    """What orthogonalising one's own rows alone would give."""
    return torch.cat([ORTHOGONALISED(half, *how) for half in matrix.chunk(2)])


def patch(owner: Any, name: str, value: Any) -> Callable[[], Any]:
    return lambda: mock.patch.object(owner, name, value)


FAULTS: dict[str, Callable[[], Any]] = {
    "": nullcontext,
    "no sum": patch(many, "sum_over", lambda *_: None),
    "mean of means": patch(Loop, "accumulate", by_own_weight),
    "same rows": patch(many, "own_rows", lambda n, line: range(n // line.size)),
    "averaged": patch(FSDPModule, "set_gradient_divide_factor", lambda self, _: DIVIDE(self, 2.0)),
    "own norm": patch(many.Many, "norm", lambda self, parameters: norm_of_all(parameters)),
    "not handed out": patch(many, "hand_out", lambda *_: None),
    "part of a matrix": patch(muon, "orthogonalised", by_halves),
    "no sum back": patch(exchange.Enter, "backward", staticmethod(lambda ctx, grad: (grad, None))),
    "own tokens": patch(many, "split_tensor", without_partial),
    "bias by all": patch(tensor.RowLinear, "forward", bias_by_all),
    "untied": patch(many, "split_pipe", untied),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While in it, the fault `name` is there; '' plants none."""
    with FAULTS[name]():
        yield
