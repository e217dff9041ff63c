"""How time and memory of attention grow with length: fitted exponents from 1k to 16k tokens, forward and back.

One layer's mixing alone (2 heads of 32 channels, fp32, one thread), both ways or causal. Time is the least process CPU
time of a few rounds, memory the most tensor bytes alive at once. An exponent is the slope of a line through the
logarithms. The bar: full 2 ± 0.1, windows, patterns of fixed width and linear 1 ± 0.1 in time, all at most 1 in memory.

Full causal attention skips what lies above the diagonal in whole blocks: of 1k tokens it computes 5/8, of 16k hardly
more than half. Its work is n² / 2 + 128 n (blocks of 256), so its slope from 1k on is below 2 and tends to 2: `last`
is the slope of the last doubling. Strided and Fixed have a stride of the square root of the length, as published: 1.5
in time.

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
HEADS, CHANNELS, WINDOW, ROUNDS, SECONDS = 2, 32, 128, 5, 10.0
EITHER, BOTH, CAUSAL = (False, True), (False,), (True,)
KINDS = {
    "full": EITHER, "window": EITHER, "linear": EITHER, "longformer": BOTH, "bigbird": BOTH, "strided": CAUSAL,
    "fixed": CAUSAL, "softcap": CAUSAL, "softcap window": CAUSAL, "alibi": CAUSAL, "buckets": BOTH,
}  # fmt: skip


def mixing(kind: str, causal: bool, length: int) -> Callable[[], None]:
    """One forward and backward pass of attention over a document of `length` tokens."""
    import torch

    from fledge.batch import OneDocument, Tokens
    from fledge.nn import config
    from fledge.nn.bias import make_bias
    from fledge.nn.kernels import attend
    from fledge.nn.linear_attention import kernelised
    from fledge.nn.visibility import Sight

    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, length, HEADS, CHANNELS, generator=generator, requires_grad=True) for _ in range(3))
    zeros, pos = torch.zeros(1, length, dtype=torch.int64), torch.arange(length)[None]
    tokens = Tokens(zeros, pos, zeros, (pos < 4).long())  # four global tokens, where a pattern has such
    root = round(math.sqrt(length))
    pattern = {
        "longformer": config.Longformer(2 * WINDOW), "bigbird": config.BigBird(64, 3), "strided": config.Strided(root),
        "fixed": config.Fixed(root),
    }.get(kind)  # type: ignore[call-overload]  # fmt: skip
    window = WINDOW if "window" in kind else None
    sight = Sight(CHANNELS**-0.5, causal, window, pattern, 5.0 if "softcap" in kind else None)
    position = {"alibi": config.Alibi(), "buckets": config.Buckets()}.get(kind)  # type: ignore[call-overload]
    bias = make_bias(position, HEADS, causal)
    learned = [] if bias is None else [torch.nn.init.normal_(p, generator=generator) for p in bias.parameters()]
    ones = torch.ones(1, length, HEADS, CHANNELS)

    def step() -> None:
        if kind == "linear":
            out = kernelised(q, k, v, tokens, OneDocument(), causal, None, 0)
        else:
            out = attend(q, k, v, tokens, OneDocument(), sight, bias)
        torch.autograd.grad(out, (q, k, v, *learned), ones)

    return step


def seconds(kind: str, causal: bool, length: int) -> float:
    """Least CPU seconds of one pass, of ROUNDS or as many as SECONDS allow."""
    step = mixing(kind, causal, length)
    step()
    least, first = math.inf, time.process_time()
    for _ in range(ROUNDS):
        began = time.process_time()
        step()
        least = min(least, time.process_time() - began)
        if time.process_time() - first > SECONDS:
            break
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
        "last": round(math.log2(times[-1] / times[-2]), 3),
        "exponent_of_memory": round(exponent([float(p) for p in peaks]), 3),
    }


def main() -> None:
    import torch

    torch.set_num_threads(1)
    what = {
        "lengths": LENGTHS, "heads": HEADS, "channels": CHANNELS, "window": WINDOW, "threads": 1,
        "kinds": {
            f"{kind} {'causal' if causal else 'both ways'}": measured(kind, causal)
            for kind, ways in KINDS.items() for causal in ways
        },
    }  # fmt: skip
    if "--keep" in sys.argv:
        keep("attention_length", what)
        return
    for kind, row in what["kinds"].items():  # type: ignore[attr-defined]
        last, memory = row["last"], row["exponent_of_memory"]
        print(f"{kind:<22} time n^{row['exponent_of_time']:.2f} (last {last:.2f}), memory n^{memory:.2f}  {row}")


if __name__ == "__main__":
    main()
