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
    (0xE00, 0xE7F), (0x1780, 0x17FF), (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xFE00, 0xFFFD), (0x1F300, 0x1FAFF),
    (0x0, 0x1F), (0x10000, 0x10FFFF),
)  # fmt: skip
FRAGMENTS = (
    "👩\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "👍🏽", "🇯🇵🇩", "\u200d", "1\ufe0f\u20e3",
    "e\u0301", "\u0301a", "Z\u0351\u036b\u0343\u036a\u0302A", "\u1112\u1161\u11ab", "ﬁ", "İstanbul ı", "ǅ ß ẞ",
    "\0", "a\0b", "\ufffd", "\ufeff", "\u202e\u2066", "\u00ad", "\ufdd0", "\U0010ffff",
    "  ", "   \n", "\r\n\r\n", " \t \t", "\u00a0\u2003\u3000", "\x85\u2028\u2029", " " * 20, "\n" * 9,
    "สวัสดีครับ", "សួស្តី", "مُحَمَّد ١٢٣", "क्षत्रिय १२३", "שָׁלוֹם", "ကျွန်ုပ်",
    "7", "42", "123", "2026", "12345", "1234567890123", "1,234.56e-7", "½²Ⅷ", "0x1F",
    "don't", "I'LL", "we'Ve", "'\u017f", "snake_case", "camelCaseHTTP", "//--==", "▁", "Ġ", "##ing", "<0x41>",
)  # fmt: skip
SPELLED = (
    "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<|im_start|>user", "<|fim_prefix|>", "<s>", "</s>", "<unk>",
    "<pad>", "[INST]", "<|eos", "a</s>b", "<s><s>",
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
    """Characters of every kind: words, runs of space, accents, scripts without spaces, emoji, unassigned ones; and
    `FRAGMENTS`, which chance would hardly put together."""
    parts = []
    for _ in range(rng.randrange(longest)):
        if rng.random() < 0.1:
            parts.append(rng.choice(FRAGMENTS))
            continue
        low, high = rng.choice(RANGES)
        parts.append(chr(rng.randint(low, high)) * rng.choice((1, 1, 1, 1, 2, 5)))
    return "".join(parts)


def spelling_texts(n: int, seed: int = 0) -> list[str]:
    """Random texts with spellings of published special tokens in them, which a user may type."""
    rng = random.Random(seed)
    return [random_text(rng, 8) + rng.choice(SPELLED) + random_text(rng, 8) for _ in range(n)]


def random_texts(n: int, seed: int = 0, longest: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [random_text(rng, longest) for _ in range(n)]
