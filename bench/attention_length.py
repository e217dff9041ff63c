"""How time and memory of attention grow with length: fitted exponents from 1k to 16k tokens, forward and back.

One layer's mixing alone (2 heads of 32 channels, fp32, one thread), both ways and causal: full, a window, linear.
Time is the least process CPU time of a few rounds, memory the most tensor bytes alive at once. An exponent is the slope
of a line through the logarithms; the bar, both ways: full 2 ± 0.1 and the others 1 ± 0.1 in time, all 1 in memory.

`python bench/attention_length.py` prints; with --keep the figures go to bench/results.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from harness import keep

LENGTHS = (1024, 2048, 4096, 8192, 16384)
HEADS, CHANNELS, WINDOW, ROUNDS = 2, 32, 128, 5
KINDS = ("full", "window", "linear")
WAYS = ("both ways", "causal")


def mixing(kind: str, causal: bool, length: int) -> Callable[[], None]:
    """One forward and backward pass of attention over a document of `length` tokens."""
    import torch

    from fledge.batch import OneDocument, one_document
    from fledge.nn.kernels import attend
    from fledge.nn.linear_attention import kernelised
    from fledge.nn.visibility import Sight

    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, length, HEADS, CHANNELS, generator=generator, requires_grad=True) for _ in range(3))
    tokens = one_document(torch.zeros(1, length, dtype=torch.int64))
    sight = Sight(CHANNELS**-0.5, causal, WINDOW if kind == "window" else None)
    ones = torch.ones(1, length, HEADS, CHANNELS)

    def step() -> None:
        if kind == "linear":
            out = kernelised(q, k, v, tokens, OneDocument(), causal, None, 0)
        else:
            out = attend(q, k, v, tokens, OneDocument(), sight, None)
        torch.autograd.grad(out, (q, k, v), ones)

    return step


def seconds(kind: str, causal: bool, length: int) -> float:
    """Least CPU seconds of one pass."""
    step = mixing(kind, causal, length)
    step()
    least = math.inf
    for _ in range(ROUNDS):
        began = time.process_time()
        step()
        least = min(least, time.process_time() - began)
    return least


def exponent(figures: list[float]) -> float:
    """Slope of log figure over log length, least squares."""
    x, y = [math.log(n) for n in LENGTHS], [math.log(f) for f in figures]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measured(kind: str, causal: bool) -> dict[str, Any]:
    from fledge.nn.live_bytes import LiveBytes

    times = [seconds(kind, causal, length) for length in LENGTHS]
    peaks = []
    for length in LENGTHS:
        step = mixing(kind, causal, length)
        with LiveBytes() as meter:
            step()
        peaks.append(meter.peak)
    return {
        "seconds": [round(t, 5) for t in times],
        "bytes": peaks,
        "exponent_of_time": round(exponent(times), 3),
        "exponent_of_memory": round(exponent([float(p) for p in peaks]), 3),
    }


def main() -> None:
    import torch

    torch.set_num_threads(1)
    what = {
        "lengths": LENGTHS, "heads": HEADS, "channels": CHANNELS, "window": WINDOW, "threads": 1,
        "kinds": {f"{kind} {way}": measured(kind, way == "causal") for way in WAYS for kind in KINDS},
    }  # fmt: skip
    if "--keep" in sys.argv:
        keep("attention_length", what)
        return
    for kind, row in what["kinds"].items():  # type: ignore[attr-defined]
        print(f"{kind:<16} time n^{row['exponent_of_time']:.2f}, memory n^{row['exponent_of_memory']:.2f}  {row}")


if __name__ == "__main__":
    main()
