"""In which order a stage of a pipe works through its micro-batches. Imports no torch."""

from __future__ import annotations

from typing import Literal

Pass = tuple[Literal["forward", "backward"], int]


def gpipe(stage: int, n_stages: int, n_micro: int) -> list[Pass]:
    """All forward, then all backward: every micro-batch's activations are kept at once.
    Source: Huang et al. 2018 (arXiv 1811.06965), §2.2."""
    return [("forward", k) for k in range(n_micro)] + [("backward", k) for k in range(n_micro)]


def one_forward_one_backward(stage: int, n_stages: int, n_micro: int) -> list[Pass]:
    """As many forward as stages follow, then one forward and one backward in turn: a stage keeps activations of at most
    `n_stages - stage` micro-batches. Source: Narayanan et al. 2021 (arXiv 2104.04473), §2.2."""
    ahead = min(n_micro, n_stages - 1 - stage)
    passes: list[Pass] = [("forward", k) for k in range(ahead)]
    for k in range(n_micro - ahead):
        passes += [("forward", ahead + k), ("backward", k)]
    return passes + [("backward", k) for k in range(n_micro - ahead, n_micro)]


SCHEDULES = {"gpipe": gpipe, "1f1b": one_forward_one_backward}


def idle_share(n_stages: int, n_micro: int) -> float:
    """The share of a step in which a stage waits, with either order: (P - 1) / (M + P - 1) (ibid.)."""
    return (n_stages - 1) / (n_micro + n_stages - 1)
