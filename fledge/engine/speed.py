"""Tokens a second of models, taken in turn, so that what else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from fledge.engine.row import Row
from fledge.engine.runner import Runner
from fledge.model.transformer import Transformer

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 16, 48, 5


def decoding_speed(models: Sequence[Transformer]) -> list[float]:
    """Tokens a second of each model for one request of 16 prompt tokens, decoded one by one: the median of 5 rounds,
    after one that doesn't count. The models are packed for inference and belong to this from then on."""
    length = min(PROMPT_TOKENS + NEW_TOKENS, *(model.config.context_tokens for model in models))
    runners = [Runner(model, n_slots=1, context_tokens=length) for model in models]
    seconds: list[list[float]] = [[] for _ in runners]
    for _ in range(ROUNDS + 1):
        for runner, mine in zip(runners, seconds, strict=True):
            mine.append(decode(runner, length))
    n_new = length - min(PROMPT_TOKENS, length // 2)
    return [n_new / statistics.median(mine[1:]) for mine in seconds]


def decode(runner: Runner, length: int) -> float:
    """Seconds to go from a prompt to `length` tokens, greedily, the prompt's own pass left out."""
    n_prompt, blocks = min(PROMPT_TOKENS, length // 2), tuple(range(-(-length // runner.block_tokens)))
    ids = tuple(i % runner.vocab_size for i in range(n_prompt))
    logits = runner.forward([Row(blocks, 0, ids)])[0]
    began = time.perf_counter()
    for position in range(n_prompt, length):
        logits = runner.forward([Row(blocks, position, (int(logits[-1].argmax()),))])[0]
    return time.perf_counter() - began
