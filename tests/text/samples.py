"""Texts and small tokenizers that the tests of this folder share."""

from __future__ import annotations

import functools
import inspect
import random

from fledge.text.tokenizer import Tokenizer
from fledge.text.train import train_bpe

PATTERNS = ("gpt2", "llama3", "qwen2")
FOREIGN = "Déjà vu, naïve façade. Ελληνικά και Русский. 中文字符，没有空格。日本語のテキスト。한국어 🎉👩‍👩‍👧‍👦🇯🇵 नमस्ते "
RANGES = (
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x20), (0x09, 0x0D), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF),
    (0x900, 0x97F), (0x2000, 0x206F), (0x2070, 0x218F), (0x2581, 0x2581), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xFE00, 0xFFFD), (0x1F300, 0x1FAFF), (0x0, 0x1F), (0x10000, 0x10FFFF),
)  # fmt: skip


def source_text() -> str:
    """English and code that every Python has, and a few lines of other scripts."""
    import argparse
    import textwrap

    return inspect.getsource(textwrap) + inspect.getsource(argparse)[:40_000] + FOREIGN * 20


@functools.cache
def small_bpe(pattern: str = "gpt2", vocab_size: int = 700) -> Tokenizer:
    return train_bpe([source_text()], vocab_size, pattern)


def random_text(rng: random.Random, longest: int = 40) -> str:
    """Characters of every kind: words, runs of space, accents, scripts without spaces, emoji, unassigned ones."""
    parts = []
    for _ in range(rng.randrange(longest)):
        low, high = rng.choice(RANGES)
        parts.append(chr(rng.randint(low, high)) * rng.choice((1, 1, 1, 1, 2, 5)))
    return "".join(parts)


def random_texts(n: int, seed: int = 0, longest: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [random_text(rng, longest) for _ in range(n)]
