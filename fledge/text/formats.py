"""Finding and reading a tokenizer in any of the forms that people have, as a checked file with its configuration.

A folder is searched in the order of FOLDER_FORMS; a file is told by its name and its first bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fledge.errors import TokenizerError
from fledge.text import tokenizer_file
from fledge.text.gguf_vocab import read_gguf
from fledge.text.sentencepiece_model import read_model
from fledge.text.sentencepiece_tree import tree_of
from fledge.text.special_tokens import token_text
from fledge.text.tiktoken_file import is_tiktoken, read_tiktoken
from fledge.text.tokenizer_file import TokenizerFile
from fledge.text.vocab_files import read_bert, read_gpt2

Config = dict[str, Any]
Read = tuple[TokenizerFile, Config, str | None]

SUBFOLDERS = ("", "tokenizer", "model")
PIECE_MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
FOLDER_FORMS = ("tokenizer.json", *PIECE_MODELS, "vocab.json", "encoder.json", "vocab.txt")
OLD_FOLDERS = (*PIECE_MODELS, "vocab.json", "encoder.json", "vocab.txt")  # which list added tokens beside them
ADDED = "added_tokens_decoder"
SUFFIXES = (".tiktoken", ".gguf")
READ = (
    "a tokenizer.json, a SentencePiece .model, a .tiktoken, vocab.json with merges.txt, encoder.json with vocab.bpe, "
    "vocab.txt, a .gguf, or a folder with one of them"
)


def read(path: str | Path) -> Read:
    """The tokenizer at `path`, a file or a folder: tokenizer.json, SentencePiece `.model`, Llama 3's `tokenizer.model`,
    `.tiktoken`, `vocab.json` + `merges.txt`, `vocab.txt`, or a `.gguf`; its configuration and chat template from beside
    it. Code named by the folder is not run. Raises TokenizerError."""
    path = Path(path)
    if path.is_dir():
        path = find(path)
    tokenizer_file.demand_file(path)
    config = read_config(path.parent)
    beside = path.parent / tokenizer_file.TEMPLATE
    if path.name.endswith(".json") and path.name not in ("vocab.json", "encoder.json"):
        file = tokenizer_file.read(path)
    elif path.exists():
        listed = config.get(ADDED)
        text, config = reader_of(path)(path, config)
        file = tokenizer_file.parse(text, str(path))
        if listed is not None and path.name in OLD_FOLDERS:
            config = {**config, ADDED: listed}
    else:
        raise TokenizerError(f"{path}: expected a tokenizer, found none; check the path")
    return file, config, tokenizer_file.read_template(beside, config.pop("chat_template", None))


def find(folder: Path) -> Path:
    """The tokenizer in a folder, or in its `tokenizer` or `model`. Raises TokenizerError if there is none, or several
    of a sort that can't be told apart."""
    path = known_form(folder, SUBFOLDERS)
    if path is not None:
        return path
    for suffix in SUFFIXES:
        found = sorted(folder.glob(f"*{suffix}"))
        if len(found) == 1:
            return found[0]
        if found:
            raise TokenizerError(f"{folder}: expected one {suffix} file, got {len(found)}; name the one you mean")
    raise TokenizerError(f"{folder}: expected {READ}; found none; check the path")


def known_form(folder: Path, parts: tuple[str, ...] = ("",)) -> Path | None:
    """The first of FOLDER_FORMS that a folder holds, itself or in one of `parts`."""
    places = (folder / part / form for form in FOLDER_FORMS for part in parts)
    return next((place for place in places if place.is_file()), None)


def read_config(folder: Path) -> Config:
    """tokenizer_config.json, completed by special_tokens_map.json; without what names code."""
    config = tokenizer_file.read_object(folder / tokenizer_file.CONFIG)
    for key, value in tokenizer_file.read_object(folder / "special_tokens_map.json").items():
        config.setdefault(key, value)
    config.pop("auto_map", None)
    if ADDED not in config and (added := read_added_tokens(folder / "added_tokens.json", config)):
        config[ADDED] = added
    return config


def read_added_tokens(path: Path, config: Config) -> Config:
    """What the older added_tokens.json (token -> id) says, in the form of `added_tokens_decoder`: a token that `config`
    names as special is. Raises TokenizerError for what is no id."""
    named = [value for key, value in config.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        named += config[key] if isinstance(config.get(key), list) else []
    special = {token_text(value) for value in named}
    found = {}
    for token, number in tokenizer_file.read_object(path).items():
        known = {"content": token, "special": token in special, "normalized": token not in special}
        found[str(tokenizer_file.read_id(number, f"{path}: token {token!r:.40}"))] = known
    return found


def reader_of(path: Path) -> Callable[[Path, Config], tuple[str, Config]]:
    if path.suffix == ".gguf":
        return lambda path, config: read_gguf(path)
    if path.suffix == ".tiktoken" or is_tiktoken(path):
        return lambda path, config: read_tiktoken(path, special=told_special(config), config=config)
    if path.suffix == ".txt":
        return read_bert
    if path.suffix == ".json":
        merges = path.with_name("vocab.bpe" if path.name == "encoder.json" else "merges.txt")
        return lambda path, config: read_gpt2(path, merges, config)
    return read_pieces


def read_pieces(path: Path, config: Config) -> tuple[str, Config]:
    """A SentencePiece model. Of a configuration beside it only the template and the roles of tokens are taken: the
    model itself says the rest."""
    try:
        model = read_model(path)
    except TokenizerError:
        if path.suffix == ".model" or not os.access(path, os.R_OK):
            raise
        raise TokenizerError(f"{path}: expected {READ}; got a file that is none of these") from None
    text, told = tree_of(model, str(path))
    kept = {key: value for key, value in config.items() if key == "chat_template" or key.endswith("_token")}
    return text, {**kept, **told}


def told_special(config: Config) -> dict[str, int] | None:
    """The special tokens that a configuration lists with their ids, or None if it lists none."""
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return None
    found = {}
    for number, entry in listed.items():
        small = number.isdecimal() and len(number) < 10
        if small and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found[entry["content"]] = int(number)
    return found or None
