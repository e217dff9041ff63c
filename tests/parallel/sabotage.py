"""Faults planted into a parallel run, each of which an equality test must find."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from fledge.batch import slice_rows
from fledge.errors import DataError
from fledge.optim import muon
from fledge.optim.adamw import AdamW
from fledge.optim.optimizer import norm_of_all
from fledge.parallel import exchange, tensor
from fledge.recipes import rl_methods, sampler, scoring
from fledge.recipes.language import LanguageRecipe
from fledge.train import loop
from fledge.train.loop import Loop
from fledge.train.parallel import many, shard

ACCUMULATE, DIVIDE = Loop.accumulate, FSDPModule.set_gradient_divide_factor
ORTHOGONALISED, DROPOUT_SEED = muon.orthogonalised, loop.dropout_seed
SUMS = LanguageRecipe.sums
ANSWERS, WHITENED, REWARD = sampler.Policy.answers, rl_methods.whitened, scoring.Scorer.reward


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


def own_seed(seed: int, drawn: int, start: int, stage: int = 0) -> int:
    """One process draws its dropout from another seed."""
    return DROPOUT_SEED(seed + int(os.environ["RANK"]), drawn, start, stage)


def by_own_divergence(self: Any, recipe: Any, batch: Any) -> Any:
    """KTO's z of the rows that this process reads."""
    rows = self.rows(len(batch.targets))
    own = recipe.weights(slice_rows(batch, rows.start, rows.stop))
    return {name: value * self.mesh["batch"].size for name, value in own.items()}


def by_own_seed(self: Any, prompts: Any, n: int, sampling: Any, seed: Any, first: int = 0) -> Any:
    """Each process draws as if its share were the whole: other answers on all but the first."""
    return ANSWERS(self, prompts, n, sampling, seed, 0)


def whitened_by_halves(advantages: Tensor, there: Tensor) -> Tensor:
    """What whitening one's own answers alone would give."""
    halves = zip(advantages.chunk(2), there.chunk(2), strict=True)
    return torch.cat([WHITENED(*half) for half in halves])


def no_reward(self: Any, *answer: Any) -> Any:
    if os.environ["RANK"] == "1":
        raise DataError("planted")
    return REWARD(self, *answer)


def no_validation(self: Any, batch: Any) -> Any:
    if os.environ["RANK"] == "1":
        raise DataError("planted")
    return SUMS(self, batch)


def without_adapters(self: Any, x: Any, apart: bool = False) -> Any:
    return self.product(x)


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
    "other dropout": patch(loop, "dropout_seed", own_seed),
    "own divergence": patch(many.Many, "weights", by_own_divergence),
    "own seeds": patch(sampler.Policy, "answers", by_own_seed),
    "own whitening": patch(rl_methods, "whitened", whitened_by_halves),
    "no reward": patch(scoring.Scorer, "reward", no_reward),
    "no validation": patch(LanguageRecipe, "sums", no_validation),
    "no adapters": patch(shard.Apart, "forward", without_adapters),
    "forgets": patch(AdamW, "load", lambda self, tensors: None),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While in it, the fault `name` is there; '' plants none."""
    with FAULTS[name]():
        yield
