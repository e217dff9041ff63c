"""A model's linear maps in 8 or 4 bits, in place: by rounding to nearest, GPTQ or AWQ, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fledge.compress import folds
from fledge.compress.awq import search
from fledge.compress.calibration import Moments, Walk
from fledge.compress.gptq import gptq, output_loss
from fledge.compress.grid import round_to_nearest
from fledge.compress.units import Unit, fitting, units_of
from fledge.errors import ConfigError
from fledge.log import Progress
from fledge.model.quantization import INT8, Scheme
from fledge.model.quantized_files import install
from fledge.model.transformer import Transformer
from fledge.nn.linear import Linear
from fledge.nn.quantized import Quantized

Method = Literal["rtn", "gptq", "awq"]
Plan = dict[str, Scheme | None]


@dataclass(frozen=True)
class Settings:
    """`damping` and `act_order` are GPTQ's (see `gptq`)."""

    method: Method = "rtn"
    damping: float = 0.01
    act_order: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: its scheme (None: as it was), why it is another than planned, whether AWQ's scales were
    folded, and the share of its outputs' energy that is error on the calibration text (None without text)."""

    unit: str
    scheme: Scheme | None
    n_weights: int
    inputs: int
    why: str = ""
    folded: bool = False
    error: float | None = None


def uniform(model: Transformer, scheme: Scheme) -> Plan:
    """Every unit in one scheme."""
    return {unit.name: scheme for unit in units_of(model)}


@torch.no_grad()
def quantize(
    model: Transformer, plan: Plan, settings: Settings = Settings(), rows: Tensor | None = None
) -> list[Outcome]:
    """Quantize the units that `plan` names and tell what became of each.

    `rows` int64 [R, T] is calibration text, which gptq and awq need. Blocks are taken in order and units as a token
    meets them, so that each is fitted to what the quantized ones before it give. Memory: the model, one block's inputs
    for all rows, one matrix of second moments. Raises ConfigError for a model that can't be walked through so.
    """
    units = units_of(model)
    if settings.method == "rtn":
        return [rounded(model, unit, plan.get(unit.name)) for unit in units]
    if rows is None:
        raise ConfigError(f"calibration: expected text for {settings.method}, got none")
    progress = Progress(f"quantize ({settings.method})", len(units))
    outcomes = []
    for outcome in walked(model, units, plan, settings, rows):
        outcomes.append(outcome)
        progress.update(len(outcomes))
    progress.close()
    return outcomes


def rounded(model: Transformer, unit: Unit, planned: Scheme | None) -> Outcome:
    """A unit rounded to nearest."""
    plain = Outcome(unit.name, None, unit.n_weights, unit.inputs)
    if planned is None:
        return plain
    scheme, why = fitting(unit, planned)
    maps: dict[str, Quantized] = {}
    for name, one in unit.maps.items():
        grid, codes = round_to_nearest(one.weight, scheme)
        maps[name] = grid.linear(codes)
    install(model, maps, unit.weights[0].device)
    return replace(plain, scheme=scheme, why=why)


def walked(model: Transformer, units: list[Unit], plan: Plan, settings: Settings, rows: Tensor) -> Iterator[Outcome]:
    walk = Walk(model, rows)
    for index, block in walk.blocks():
        for unit in (one for one in units if one.block is block):
            planned = plan.get(unit.name)
            if planned is None:
                yield rounded(model, unit, None)
                continue
            moments = walk.moments(unit, index)
            if not moments.n:
                yield replace(rounded(model, unit, planned), why="no calibration text reached it: rounded to nearest")
                continue
            yield fitted(model, unit, planned, moments, settings)


def fitted(model: Transformer, unit: Unit, planned: Scheme, moments: Moments, settings: Settings) -> Outcome:
    """A unit quantized by what it reads."""
    scheme, why = fitting(unit, planned)
    fold = folds.fold_of(unit) if settings.method == "awq" else None
    hessian = moments.hessian
    if fold is not None:
        weights = [weight.float() for weight in unit.weights]
        scales = search(weights, hessian, moments.mean_abs, scheme, fold.tie)
        folds.apply(fold, unit, scales)
        hessian = hessian / scales / scales[:, None]
    maps: dict[str, Quantized] = {}
    lost = whole = 0.0
    for name, one in unit.maps.items():
        weight = one.weight.detach()
        if settings.method == "gptq":
            grid, codes = gptq(weight, hessian, scheme, settings.damping, settings.act_order)
        else:
            grid, codes = round_to_nearest(weight, scheme, hessian.diagonal())
        lost += output_loss(grid.values(codes) - weight.float(), hessian)
        whole += output_loss(weight.float(), hessian)
        maps[name] = grid.linear(codes.contiguous())
    install(model, maps, unit.weights[0].device)
    return Outcome(
        unit.name, scheme, unit.n_weights, unit.inputs, why, fold is not None, lost / whole if whole else 0.0
    )


@torch.no_grad()
def quantize_output(model: Transformer) -> None:
    """The output matrix in 8 bits; one that was the embedding becomes a matrix of its own beside it. Raises ConfigError
    for a model without one."""
    matrix = model.output_matrix.detach()
    grid, codes = round_to_nearest(matrix, INT8)
    bias = model.output.bias if isinstance(model.output, Linear) else None
    model.output = grid.linear(codes, bias)
    model.config = replace(model.config, tie=False)
