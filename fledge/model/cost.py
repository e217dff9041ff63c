"""What a training run would take: time, energy and price, from FLOPs a token and a device's published peak."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fledge.errors import ConfigError

DAY = 86400
SCALE = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class DevicePeak:
    """FLOP/s of dense products in 16 bits with sums in 32 (`peak`), and the board's power in watts."""

    peak: float
    watts: float


DEVICES = {
    # NVIDIA, "Tesla V100 GPU accelerator" data sheet: SXM2, FP16 (it has no BF16)
    "v100": DevicePeak(125e12, 300),
    # NVIDIA, "A100 Tensor Core GPU" data sheet: SXM, BF16 without sparsity
    "a100": DevicePeak(312e12, 400),
    # NVIDIA, "H100 Tensor Core GPU" data sheet: SXM, BF16, half of the figure with sparsity
    "h100": DevicePeak(989.4e12, 700),
    # NVIDIA, "H200 Tensor Core GPU" data sheet: SXM, BF16, half of the figure with sparsity
    "h200": DevicePeak(989.4e12, 700),
    # NVIDIA, "Ada GPU architecture" white paper, appendix A: BF16 with FP32 sums, without sparsity
    "rtx4090": DevicePeak(165.2e12, 450),
    # NVIDIA, "L4 Tensor Core GPU" data sheet: BF16, half of the figure with sparsity
    "l4": DevicePeak(121e12, 72),
}


@dataclass(frozen=True)
class Budget:
    """Tokens to train on, and what computes them; see `ShowConfig` for each."""

    tokens: float
    devices: int
    utilisation: float
    recompute: bool
    overhead: float
    price_per_hour: float


def training_cost(
    budget: Budget, device: DevicePeak, flops_per_token: float, weight_flops_per_token: float
) -> dict[str, Any]:
    """Time, energy and price of a run: FLOPs a token · tokens / (devices · peak · utilisation).

    FLOPs a token in training are 6 N + scores; blocks that are computed again add a third: 8 N is the formula of
    Narayanan et al. 2021 (arXiv 2104.04473, §5.1), which leaves the scores out: that is `days_by_weights`.
    Energy is in kWh, None where the device's power is not known; price in the currency of `price_per_hour`.
    """
    again = 4 / 3 if budget.recompute else 1.0
    speed = budget.devices * device.peak * budget.utilisation
    seconds = again * flops_per_token * budget.tokens / speed
    device_hours = budget.devices * seconds / 3600
    return {
        "tokens": budget.tokens,
        "devices": budget.devices,
        "peak_flops": device.peak,
        "utilisation": budget.utilisation,
        "mfu": budget.utilisation / again,
        "recompute": budget.recompute,
        "flops": again * flops_per_token * budget.tokens,
        "days": seconds / DAY,
        "days_by_weights": again * weight_flops_per_token * budget.tokens / speed / DAY,
        "device_hours": device_hours,
        "kwh": device_hours * device.watts * budget.overhead / 1000 if device.watts else None,
        "price": device_hours * budget.price_per_hour if budget.price_per_hour else None,
    }


def number_of(text: float | str) -> float:
    """`300B` as 3e11. Raises ConfigError."""
    if not isinstance(text, str):
        return float(text)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s?([KMBT]?)", text.strip())
    if not found:
        raise ConfigError(f"tokens: expected a number, alone or with K, M, B or T behind it, got {text[:40]!r}")
    return float(found[1]) * SCALE[found[2]]


def this_cpu(watts: float) -> DevicePeak:
    """This machine's CPU: its peak in float32 is measured, its power is what the caller knows (0: nothing)."""
    from fledge.device import matmul_peak, pick  # torch, which the table above does without

    return DevicePeak(matmul_peak(pick("cpu"), size=1024), watts)
