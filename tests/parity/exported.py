"""Models of transformers' classes, as folders of ours with a trained tokenizer, to be exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.model.folder import load_model, save_model
from tests.parity.decoder_cases import CASES
from tests.text.samples import small_bpe

ROWS = 512  # of the embedding: more than the tokenizer has tokens
TOKENS = 500
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": ROWS}
WIDE_GPT2 = {"n_embd": 64, "n_inner": 96, "n_layer": 2, "vocab_size": ROWS}

# a case that llama.cpp computes as well -> changes of its arguments
WRITTEN: dict[str, dict[str, Any]] = {
    "llama": {}, "llama-wide": {}, "llama-linear": {}, "llama-yarn": {}, "llama-llama3": {}, "mistral-whole": {},
    "mistral": {"sliding_window": 64}, "mixtral": {"router_aux_loss_coef": 0.5}, "qwen2": {}, "qwen3": {},
    "qwen3-moe": {}, "smollm3": {"no_rope_layers": None, "num_hidden_layers": 5}, "olmo2": {},
    "phi3": {"sliding_window": None}, "phi3-part": {}, "stablelm": {}, "stablelm-parallel": {}, "gemma": {},
    "gemma-multi-query": {"tie_word_embeddings": True}, "gpt2": {},
    "gemma2": {"query_pre_attn_scalar": 16, "layer_types": None, "num_hidden_layers": 3},
    "gemma3": {"query_pre_attn_scalar": 16, "layer_types": None, "num_hidden_layers": 7},
}  # fmt: skip


def folder_of(kind: str, folder: Path, pattern: str = "gpt2", **more: Any) -> Path:
    """A folder with the model of a case, its matrices of 64 and 96 inputs, and a byte-level BPE."""
    case = CASES[kind]
    wide = WIDE_GPT2 if kind.startswith("gpt2") else WIDE
    model = replace(case, sizes={**case.sizes, **wide, **case.more, **more}, more={}).model()
    model.save_pretrained(folder / "theirs")
    save_model(load_model(folder / "theirs"), folder / "ours", small_bpe(pattern, TOKENS))
    return folder / "ours"
