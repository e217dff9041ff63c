"""Models of transformers' classes, as folders of ours with a trained tokenizer, to be exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.model.folder import load_model, save_model
from fledge.text.tokenizer import Tokenizer
from tests.parity.decoder_cases import CASES
from tests.text.samples import small_bpe

ROWS = 512  # of the embedding: more than the tokenizer has tokens
TOKENS = 500
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": ROWS}
WIDE_GPT2 = {"n_embd": 64, "n_inner": 96, "n_layer": 2, "vocab_size": ROWS}


def folder_of(kind: str, folder: Path, pattern: str = "gpt2", **more: Any) -> Path:
    """A folder with the model of a case, its matrices of 64 and 96 inputs, and a byte-level BPE."""
    case = CASES[kind]
    wide = WIDE_GPT2 if kind.startswith("gpt2") else WIDE
    model = replace(case, sizes={**case.sizes, **wide, **case.more, **more}, more={}).model()
    model.save_pretrained(folder / "theirs")
    save_model(load_model(folder / "theirs"), folder / "ours", small_bpe(pattern, TOKENS))
    return folder / "ours"


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)
