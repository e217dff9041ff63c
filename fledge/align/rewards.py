"""Rewards that can be verified: small functions of an answer and its prompt's row, by name. Imports no torch.

Each gives 0..1. `REWARDS` is the registry: a further kind is one function and one entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from fledge.align.rl_config import RewardConfig
from fledge.align.sandbox import Limits, passes
from fledge.errors import DataError

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4})?")
FENCE = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)
MOST_CHARACTERS = 1 << 16  # of an answer that a pattern is tried on

Reward = Callable[[str, Sequence[int], Mapping[str, Any], RewardConfig], float]
"""From an answer's text and token ids, its prompt's row and the settings. Raises DataError for a row without what it
needs."""


def number(text: str, ids: Sequence[int], row: Mapping[str, Any], config: RewardConfig) -> float:
    """1 where the last number of the answer, or of the pattern's first group, is the row's; exactly, as decimals."""
    wanted, said = last_number(str(wanted_of(row, config))), last_number(part_read(text, config))
    if wanted is None:
        raise DataError(f"rewards: expected a number as {config.field!r} of each prompt, got {row[config.field]!r:.60}")
    return float(said is not None and said == wanted)


def last_number(text: str) -> Decimal | None:
    found = NUMBER.findall(text[-MOST_CHARACTERS:])
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def text_equal(text: str, ids: Sequence[int], row: Mapping[str, Any], config: RewardConfig) -> float:
    """1 where the answer, or the pattern's first group, is the row's text, but for space around it."""
    wanted = wanted_of(row, config)
    if not isinstance(wanted, str | int | float):
        raise DataError(f"rewards: expected a text as {config.field!r} of each prompt, got {wanted!r:.60}")
    return float(part_read(text, config).strip() == str(wanted).strip())


def regex(text: str, ids: Sequence[int], row: Mapping[str, Any], config: RewardConfig) -> float:
    """1 where the whole answer matches."""
    return float(re.fullmatch(config.pattern, text[:MOST_CHARACTERS], re.DOTALL) is not None)


def length(text: str, ids: Sequence[int], row: Mapping[str, Any], config: RewardConfig) -> float:
    """1 at the wanted number of tokens, less 1 / tokens for each token off it, never below 0."""
    return max(0.0, 1.0 - abs(len(ids) - config.tokens) / config.tokens)


def code(text: str, ids: Sequence[int], row: Mapping[str, Any], config: RewardConfig) -> float:
    """1 where the answer's code (its last fenced block, or all of it) passes the row's tests in the sandbox."""
    blocks, tests = FENCE.findall(text), wanted_of(row, config)
    if isinstance(tests, list) and all(isinstance(one, str) for one in tests):
        tests = "\n".join(tests)
    if not isinstance(tests, str) or not tests.strip():
        raise DataError(
            f"rewards: expected tests as {config.field!r} of each prompt, a text or a list of texts, got {tests!r:.60}"
        )
    return float(passes(blocks[-1] if blocks else text, tests, Limits(config.seconds, config.memory_bytes)))


REWARDS: dict[str, Reward] = {
    "number": number,
    "text": text_equal,
    "regex": regex,
    "length": length,
    "code": code,
}


def wanted_of(row: Mapping[str, Any], config: RewardConfig) -> Any:
    if config.field not in row:
        raise DataError(
            f"rewards: expected {config.field!r} in each prompt's row, got {', '.join(map(str, row))}; "
            "set rewards.field"
        )
    return row[config.field]


def part_read(text: str, config: RewardConfig) -> str:
    """What of an answer is compared; nothing where the pattern isn't found."""
    if not config.pattern:
        return text
    found = re.search(config.pattern, text[:MOST_CHARACTERS], re.DOTALL)
    return "" if found is None else found.group(1 if found.re.groups else 0) or ""
