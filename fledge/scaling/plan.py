"""`fledge scale plan`: how to spend a budget, by fitted or published laws."""

from __future__ import annotations

from typing import Any

from fledge.errors import ConfigError, DataError
from fledge.model.cost import DEVICES, this_cpu
from fledge.scaling.config import PlanConfig
from fledge.scaling.fit import surface_of
from fledge.scaling.fitted import read_fit
from fledge.scaling.laws import FLOPS_PER_PARAMETER_TOKEN, Allocation, Allotment, Optimum, Surface, published
from fledge.scaling.shape import suggest


def plan(config: PlanConfig, json: bool = False) -> dict[str, Any]:
    """The best N and D for the budget, the loss to expect, a shape near N, and what half and twice N would give."""
    flops, speed = budget(config)
    law, source, count = allocation(config)
    best = law.optimum(flops)
    result: dict[str, Any] = {
        "flops": flops, "source": source, "count": count, "parameters": best.parameters, "tokens": best.tokens,
        "tokens_per_parameter": best.tokens / best.parameters, "loss": best.loss,
    }  # fmt: skip
    if speed:
        hours = flops / speed / 3600
        price = hours * config.devices * config.price_per_hour if config.price_per_hour else None
        result |= {"device": config.device, "devices": config.devices, "utilisation": config.utilisation,
                   "hours": hours, "price": price}  # fmt: skip
    result["shape"] = suggest(best.parameters, count, config.vocab_size, config.context_tokens)
    result["nearby"] = nearby(law, flops, best)
    if not json:
        print_plan(result)
    return result


def budget(config: PlanConfig) -> tuple[float, float]:
    """(FLOPs of the budget, FLOP/s of all devices at work). Raises ConfigError for less than one FLOP."""
    device = this_cpu(0.0) if config.device == "cpu" else DEVICES[config.device]
    speed = device.peak * config.devices * config.utilisation
    hours = config.money / (config.price_per_hour * config.devices) if config.money else config.hours
    flops = config.flops or speed * hours * 3600
    if flops < 1:
        raise ConfigError(f"flops: expected a budget of at least 1 FLOP, got {flops:g}; give a larger one")
    return flops, speed


def allocation(config: PlanConfig) -> tuple[Allocation, str, str]:
    """(the law, where it is from, which N it counts). Raises DataError for an approach that the fit lacks."""
    if config.fit is None:
        name = config.constants
        return published(name), name, "non_embedding" if name == "kaplan" else "total"
    found = read_fit(config.fit)
    part = found[f"approach_{config.approach}"]
    if "missing" in part:
        raise DataError(f"{config.fit}: expected approach {config.approach}, got none: {part['missing']}")
    law: Allocation = surface_of(part) if config.approach == 3 else Allotment(part["k"], part["a"])
    return law, f"{config.fit}, approach {config.approach}", found["count"]


def nearby(law: Allocation, flops: float, best: Optimum) -> list[dict[str, float]]:
    """Loss at the same budget with other sizes, where the law knows it."""
    if not isinstance(law, Surface):
        return []
    rows = []
    for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
        parameters = factor * best.parameters
        tokens = flops / FLOPS_PER_PARAMETER_TOKEN / parameters
        rows.append(
            {"factor": factor, "parameters": parameters, "tokens": tokens, "loss": law.loss(parameters, tokens)}
        )
    return rows


def print_plan(result: dict[str, Any]) -> None:
    what = result["count"].replace("_", "-")
    print(f"budget   {result['flops']:.3g} FLOPs ({result['source']})")
    if result.get("hours") is not None:
        print(f"time     {result['hours']:,.1f} hours on {result['devices']:,} x {result['device']}"
              f" at {100 * result['utilisation']:.0f} %")  # fmt: skip
    if result.get("price") is not None:
        print(f"price    {result['price']:,.2f}")
    print(f"N        {result['parameters']:.3g} parameters ({what})")
    print(f"D        {result['tokens']:.3g} tokens ({result['tokens_per_parameter']:.3g} a parameter)")
    if result["loss"] is not None:
        print(f"loss     {result['loss']:.4f} nats a token, on the data that the law was fitted to")
    shape = result["shape"]
    print(f"shape    width {shape['width']}, layers {shape['layers']}, heads {shape['heads']}: "
          f"{shape['parameters']:,} parameters, {shape['parameters_non_embedding']:,} without embeddings")  # fmt: skip
    for row in result["nearby"]:
        print(f"         {row['factor']:>4g} x N: {row['tokens']:.3g} tokens, loss {row['loss']:.4f}")
