"""A vocabulary in which a split of the texts of gguf_splits.json shows: bytes that are not split are joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fledge.text.byte_alphabet import CHARACTER_OF
from fledge.text.gguf_write import write_gguf


def joining_vocabulary(texts: list[str]) -> tuple[list[str], list[str]]:
    """Tokens and merges: the bytes, then every run of two to six bytes of `texts`, the shorter first."""
    spelled = ["".join(CHARACTER_OF[byte] for byte in text.encode()) for text in texts]
    runs = {text[i : i + n]: None for n in range(2, 7) for text in spelled for i in range(len(text) - n + 1)}
    merges = [f"{run[:-1]} {run[-1]}" for run in runs]
    return [*(CHARACTER_OF[byte] for byte in range(256)), *runs, "<|end|>"], merges


def write_vocabulary(path: Path, pre: str, texts: list[str]) -> None:
    """A GGUF file of that vocabulary whose split pattern is `pre`."""
    tokens, merges = joining_vocabulary(texts)
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (len(tokens) - 1) + [3], "<i4"),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 1,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    write_gguf(path, metadata)
