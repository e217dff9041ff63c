"""Published vocabularies and cases that several test files read."""

from __future__ import annotations

import functools
from itertools import zip_longest
from pathlib import Path

from fledge.text.tokenizer import Tokenizer


@functools.cache
def loaded(path: Path) -> Tokenizer:
    return Tokenizer.load(path)


def llamacpp_cases(stem: Path) -> list[tuple[str, list[int]]]:
    inputs = Path(f"{stem}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    outputs = Path(f"{stem}.out").read_text(encoding="utf-8").splitlines()
    assert len(inputs) - len(outputs) in (0, 1), "only the line of an empty last input may be missing"
    return [(text, [int(i) for i in line.split()]) for text, line in zip_longest(inputs, outputs, fillvalue="")]
