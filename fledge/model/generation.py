"""What a model folder says of generating: generation_config.json; config.json of folders from before there was one; the
ids that end an answer. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.config import read_json
from fledge.errors import ConfigError
from fledge.model.families.family import token_ids
from fledge.text.tokenizer import Tokenizer

GENERATION, START, END = "generation_config.json", "decoder_start_token_id", "eos_token_id"
WRITERS_OWN = ("transformers_version", "_from_model_config")  # of generation_config.json: who wrote it, and from what
MAX_CONFIG_BYTES = 2 << 20  # thousands of labels; what takes longer to read than a second is no config
IN_CONFIG = (
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "remove_invalid_values", "repetition_penalty", "suppress_tokens", "temperature", "top_k",
    "top_p", "typical_p",
)  # fmt: skip
"""Keys of config.json that transformers takes over where there is no generation_config.json."""


def generation_file(folder: str | Path) -> dict[str, Any] | None:
    """What generation_config.json holds; None without one. Raises ConfigError."""
    path = Path(folder) / GENERATION
    if not path.is_file():
        return None
    raw = read_json(path, MAX_CONFIG_BYTES)
    if not isinstance(raw, dict):
        raise ConfigError(f"{GENERATION}: expected a mapping, got {type(raw).__name__}")
    return {key: value for key, value in raw.items() if key not in WRITERS_OWN}


def told_of_generating(file: dict[str, Any] | None, raw: dict[str, Any]) -> dict[str, Any]:
    """What a folder of this generation_config.json (None for none) and this config.json says of generating: where
    config.json lists several ids that end an answer, they do. Raises ConfigError."""
    told = {key: raw[key] for key in IN_CONFIG if raw.get(key) is not None} if file is None else file
    listed = token_ids(raw, END)
    if len(listed) < 2:  # the one that a model's own config has a place for
        return told
    known = token_ids(told, END, GENERATION)
    return {**told, END: known + [i for i in listed if i not in known]}


def stop_ids(folder: str | Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's, config.json's and generation_config.json's. Raises ConfigError."""
    found = set(tokenizer.stop_ids)
    for name in ("config.json", GENERATION):
        path = Path(folder) / name
        if path.is_file():
            raw = read_json(path)
            if not isinstance(raw, dict):
                raise ConfigError(f"{name}: expected a mapping, got {type(raw).__name__}")
            found.update(token_ids(raw, "eos_token_id", name))
    return frozenset(found)
