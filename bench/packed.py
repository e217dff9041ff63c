"""Seconds of attention over 8 packed documents of 256 tokens: document by document, and with a mask over the whole row.

One layer's mixing, forward and backward, causal, 12 heads of 64 channels, fp32. The mask is the block-diagonal one that
torch's scaled_dot_product_attention takes, as transformers gives it. The bar: the mask takes 3 times as long or more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness import clock, run

DOCUMENTS, TOKENS, HEADS, CHANNELS = 8, 256, 12, 64
PASSES = 5


def timed(step: Callable[[], None], threads: int) -> Iterator[float]:
    step()
    yield 0.0
    while True:
        began = clock(threads)
        for _ in range(PASSES):
            step()
        yield (clock(threads) - began) / PASSES


def packed(threads: int) -> Iterator[float]:
    import torch

    from fledge.batch import Packed, Tokens
    from fledge.nn.kernels import attend
    from fledge.nn.visibility import Sight

    length = DOCUMENTS * TOKENS
    q, k, v = (torch.randn(1, length, HEADS, CHANNELS, requires_grad=True) for _ in range(3))
    pos = torch.arange(TOKENS).repeat(DOCUMENTS)[None]
    doc = torch.arange(DOCUMENTS).repeat_interleave(TOKENS)[None]
    layout = Packed(tuple(range(0, length + 1, TOKENS)), TOKENS)
    tokens, sight = Tokens(torch.zeros_like(pos), pos, doc), Sight(CHANNELS**-0.5)

    def step() -> None:
        attend(q, k, v, tokens, layout, sight, None).sum().backward()

    return timed(step, threads)


def masked(threads: int) -> Iterator[float]:
    import torch
    import torch.nn.functional as F

    length = DOCUMENTS * TOKENS
    q, k, v = (torch.randn(1, HEADS, length, CHANNELS, requires_grad=True) for _ in range(3))
    doc = torch.arange(DOCUMENTS).repeat_interleave(TOKENS)
    mask = (doc[:, None] == doc[None, :]).tril()[None, None]

    def step() -> None:
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()

    return timed(step, threads)


if __name__ == "__main__":
    run(__file__, {"masked": masked, "packed": packed}, "packed", "packed", "seconds a pass")
