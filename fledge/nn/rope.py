"""Rotary frequencies and how they are scaled for longer documents. R turned channels.

Sources: linear: Chen et al. 2023 (arXiv 2306.15595). Dynamic NTK: bloc97 and emozilla 2023. YaRN: Peng et al. 2023
(arXiv 2309.00071). Llama 3: Meta's 3.1 release. LongRoPE: Ding et al. 2024 (arXiv 2402.13753).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fledge.nn.config import Rope, RopeScaling


def frequencies(config: Rope, channels: int, length: int) -> tuple[Tensor, float]:
    """(radians a token, float32 [R/2]; factor on cosine and sine) for documents of up to `length` tokens."""
    turned = config.channels or channels
    plain = powers(config.theta, turned)
    scaling = config.scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "dynamic":
        return dynamic(config.theta, turned, scaling, length), 1.0
    if scaling.kind == "llama3":
        return llama3(plain, scaling), 1.0
    if scaling.kind == "yarn":
        return yarn(config.theta, turned, scaling)
    return longrope(config.theta, turned, scaling, length)


def powers(theta: float, turned: int) -> Tensor:
    exponents = torch.arange(0, turned, 2, dtype=torch.int64).float() / turned
    return 1.0 / (theta**exponents)


def dynamic(theta: float, turned: int, scaling: RopeScaling, length: int) -> Tensor:
    """The base grows with the document once it exceeds the original length."""
    length = max(length, scaling.original_tokens)
    stretch = scaling.factor * length / scaling.original_tokens - (scaling.factor - 1)
    return powers(theta * stretch ** (turned / (turned - 2)), turned)


def llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves are stretched, short ones kept, those between are blended."""
    waves = 2 * math.pi / plain
    longest = scaling.original_tokens / scaling.low_frequency
    shortest = scaling.original_tokens / scaling.high_frequency
    share = (scaling.original_tokens / waves - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    blended = (1 - share) * plain / scaling.factor + share * plain
    stretched = torch.where(waves > longest, plain / scaling.factor, plain)
    return torch.where((waves <= longest) & (waves >= shortest), blended, stretched)


def yarn(theta: float, turned: int, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Channels that turn often are kept, those that turn seldom are stretched, with a ramp between."""

    def channel_of(turns: float) -> float:
        return turned * math.log(scaling.original_tokens / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel_of(scaling.beta_fast), channel_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turned - 1)
    high = high + 0.001 if low == high else high
    kept = 1 - ((torch.arange(turned // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    # the order of operations is the reference's: at position 100,000 one rounding more turns a channel by 0.01
    waves = theta ** (torch.arange(0, turned, 2).float() / turned)
    return 1.0 / (scaling.factor * waves) * (1 - kept) + 1.0 / waves * kept, yarn_factor(scaling)


def yarn_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all)
    return temperature(1.0)


def longrope(theta: float, turned: int, scaling: RopeScaling, length: int) -> tuple[Tensor, float]:
    """A factor for each channel, one set for short documents and one for long."""
    factors = scaling.long_factors if length > scaling.original_tokens else scaling.short_factors
    waves = theta ** (torch.arange(0, turned, 2, dtype=torch.int64).float() / turned)
    per_token = 1.0 / (torch.tensor(factors, dtype=torch.float32) * waves)
    if scaling.attention_factor is not None:
        return per_token, scaling.attention_factor
    if scaling.factor <= 1:
        return per_token, 1.0
    return per_token, math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_tokens))
