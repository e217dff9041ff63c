"""A LLaMA shape near a number of parameters: width and layers in customary proportion."""

from __future__ import annotations

import math
from typing import Any

from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.scaling.sweep import sizes

HEAD_CHANNELS, LARGE_HEAD_CHANNELS, LARGE = 64, 128, 1e9  # from how many parameters on heads are large
WIDEST = 1 << 16
ASPECT_SMALL, ASPECT_LARGE = (1e7, 32.0), (7e9, 128.0)  # width / layers: GPT-2 small 64, LLaMA 7B 128
STRAYING = 0.1  # what a factor e off the customary proportion weighs, against a factor e off the size


def suggest(parameters: float, count: str, vocab_size: int, context_tokens: int) -> dict[str, Any]:
    """`width`, `layers`, `heads` and the counts of the shape that comes nearest."""
    tried, step = [], HEAD_CHANNELS if parameters < LARGE else LARGE_HEAD_CHANNELS
    for width in range(step, WIDEST + 1, step):
        inside = parameters - (0 if count == "non_embedding" else vocab_size * width)
        for layers in {max(1, math.floor(inside / (12 * width**2))), max(1, math.ceil(inside / (12 * width**2)))}:
            size = 12 * layers * width**2 + (0 if count == "non_embedding" else vocab_size * width)
            off = abs(math.log(size / parameters)) + STRAYING * abs(math.log(width / layers / aspect(parameters)))
            tried.append((off, width, layers))
        if 12 * width**2 > 4 * parameters:
            break
    _, width, layers = min(tried)
    heads = width // step
    shape = ShapeConfig("llama", width=width, layers=layers, heads=heads, vocab_size=vocab_size,
                        context_tokens=context_tokens, tie=True)  # fmt: skip
    total, inner = sizes(family("llama").new_config(shape))
    return {
        "family": "llama", "width": width, "layers": layers, "heads": heads, "tie": True,
        "parameters": total, "parameters_non_embedding": inner,
    }  # fmt: skip


def aspect(parameters: float) -> float:
    """The customary width / layers of a model of this size."""
    (small, low), (large, high) = ASPECT_SMALL, ASPECT_LARGE
    share = (math.log(parameters) - math.log(small)) / (math.log(large) - math.log(small))
    return low * (high / low) ** min(1.0, max(0.0, share))
