"""What the compiled kernels do by themselves: products of float32, int8 and int4 weights, and a sample's contenders.

For each shape and number of rows GFLOP/s and GB/s of weights, one thread, CPU time, the median of 7 rounds; for a
sample over 32,000 almost flat scores microseconds. Kept in bench/results/kernels.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from harness import keep

SHAPES = ((288, 288), (768, 768), (5632, 2048))
ROWS = (1, 8, 32, 512)
ROUNDS = 7
SECONDS = 0.05  # of a round


def seconds(act: Callable[[], Any]) -> float:
    """CPU seconds of one call: the median of the rounds."""
    act()
    began = time.process_time()
    act()
    n = max(1, int(SECONDS / max(1e-6, time.process_time() - began)))
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(n):
            act()
        rounds.append((time.process_time() - began) / n)
    return statistics.median(rounds)


def linears(outputs: int, inputs: int) -> dict[str, tuple[Any, float]]:
    """A product of each kind, and its bytes a weight."""
    import torch

    from fledge.nn.native.linear import float_linear, int4_linear, int8_linear

    groups = inputs // 32
    whole = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    nibbles = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    return {
        "float32": (float_linear(torch.randn(outputs, inputs), None), 4.0),
        "int8": (int8_linear(whole, torch.rand(outputs), None), 1.0),
        "int4": (int4_linear(nibbles, torch.rand(outputs, groups), torch.full((outputs, groups), 8.0), None), 0.75),
    }


def main() -> None:
    import numpy as np
    import torch

    from fledge.engine.noise import contenders, gumbel
    from fledge.nn.native import library

    library.build()
    torch.set_num_threads(1)
    products = {}
    for outputs, inputs in SHAPES:
        for kind, (linear, size) in linears(outputs, inputs).items():
            for rows in ROWS:
                x = torch.randn(rows, inputs)
                took = seconds(lambda linear=linear, x=x: linear(x))
                name = f"{kind} {inputs}x{outputs} {rows} rows"
                flops, read = 2 * rows * outputs * inputs / took / 1e9, outputs * inputs * size / took / 1e9
                products[name] = {"gflops": round(flops, 1), "gb_per_second": round(read, 1)}
    scores = np.random.default_rng(1).normal(size=32_000).astype(np.float32) * np.float32(0.1)
    best, every = int(scores.argmax()), np.arange(32_000)
    sample = {
        "contenders": seconds(lambda: contenders(scores, best, 1.0, 7)) * 1e6,
        "all": seconds(lambda: scores.astype(np.float64) + gumbel(7, every)) * 1e6,
    }
    keep("kernels", {"clock": "CPU time", "rounds": ROUNDS, "products": products, "sample_microseconds": sample})


if __name__ == "__main__":
    main()
