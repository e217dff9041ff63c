"""GPT-2's `vocab.json` + `merges.txt` and BERT's `vocab.txt` as tokenizer.json and configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fledge.errors import TokenizerError
from fledge.text import pattern, tokenizer_file
from fledge.text.model_check import MAX_ENTRIES, describe

MAX_LINES = MAX_ENTRIES + 1  # merges.txt has a head
BRACKETED = re.compile(r"\[[A-Za-z0-9_]+\]")
BERT_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
GPT2_END = "<|endoftext|>"
BYTE_DECODER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def read_gpt2(vocab_path: Path, merges_path: Path, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """tokenizer.json's text and the configuration of a byte-level BPE in GPT-2's two files. What `config` calls special
    tokens, `<|endoftext|>` at least, become control tokens. Raises TokenizerError."""
    if config.get("add_prefix_space"):
        raise TokenizerError(f"{vocab_path}: add_prefix_space: expected false, got true; save it as tokenizer.json")
    vocab = tokenizer_file.parse_json(read_text(vocab_path), str(vocab_path))
    merges = []
    for number, line in enumerate(lines_of(merges_path)):
        if not line or number == 0 and line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise TokenizerError(f"{merges_path}, line {number + 1}: expected two tokens, got {describe(line)}")
        merges.append(parts)
    named = [value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)]
    special = {token: vocab[token] for token in (*named, GPT2_END) if isinstance(vocab.get(token), int)}
    roles = {"bos_token": GPT2_END, "eos_token": GPT2_END} if GPT2_END in vocab and not named else {}
    tree = bpe_tree(vocab, merges, pattern.pre_tokenizer_of("gpt2"), entries(special, special=True))
    return json.dumps(tree, ensure_ascii=False, indent=1), plain_config({**roles, **config})


def bpe_tree(
    vocab: dict[str, int],
    merges: list[list[str]],
    pre_tokenizer: dict[str, Any],
    added: list[dict[str, Any]],
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE. `ignore_merges`: a word that is a token is never cut."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }
    return {**EMPTY, "added_tokens": added, "pre_tokenizer": pre_tokenizer, "decoder": BYTE_DECODER, "model": model}


EMPTY: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
}


def read_bert(path: Path, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """tokenizer.json's text and the configuration of a BERT `vocab.txt`: a token a line, the number of the line its
    id. `config` (tokenizer_config.json) tells do_lower_case, strip_accents, tokenize_chinese_chars and special tokens;
    without do_lower_case it is assumed where no token has a capital. Raises TokenizerError."""
    return bert_source(lines_of(path), config, str(path))


def bert_source(tokens: list[str], config: dict[str, Any], at: str) -> tuple[str, dict[str, Any]]:
    """The same from the tokens in order."""
    vocab: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if vocab.setdefault(token, number) != number:
            raise TokenizerError(f"{at}: {token!r:.40}: expected once, got it as {vocab[token]} and {number}")
    names = {key: content(config.get(key), default) for key, default in BERT_ROLES.items()}
    if names["unk_token"] not in vocab:
        raise TokenizerError(f"{at}: expected the token {names['unk_token']!r:.40}, found none; not a BERT vocabulary")
    lower = config.get("do_lower_case")
    if not isinstance(lower, bool):
        lower = not any(token != token.lower() and not BRACKETED.fullmatch(token) for token in tokens)
    accents, chinese = config.get("strip_accents"), config.get("tokenize_chinese_chars")
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": chinese if isinstance(chinese, bool) else True,
        "strip_accents": accents if isinstance(accents, bool) else None,
        "lowercase": lower,
    }
    special = {name: vocab[name] for name in names.values() if name in vocab}
    model = {
        "type": "WordPiece",
        "unk_token": names["unk_token"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }
    tree = {
        **EMPTY,
        "added_tokens": entries(special, special=True),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": bert_frame(names["cls_token"], names["sep_token"], vocab),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": model,
    }
    roles = {key: name for key, name in names.items() if name in vocab}
    kept = {**config, **roles, "do_lower_case": lower}
    return json.dumps(tree, ensure_ascii=False, indent=1), plain_config(kept)


def bert_frame(begin: str, end: str, vocab: dict[str, int]) -> dict[str, Any] | None:
    """The post-processor [CLS] A [SEP] (B [SEP]), if both tokens are there."""
    if begin not in vocab or end not in vocab:
        return None

    def token(name: str, type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    def text(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    single = [token(begin, 0), text("A", 0), token(end, 0)]
    named = {name: {"id": name, "ids": [vocab[name]], "tokens": [name]} for name in (begin, end)}
    pair = [*single, text("B", 1), token(end, 1)]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named}


def entries(tokens: dict[str, int], special: bool) -> list[dict[str, Any]]:
    """`added_tokens` for tokens and their ids."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    ordered = sorted(tokens.items(), key=lambda item: item[1])
    return [{"id": number, "content": token, **flags} for token, number in ordered]


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration under which `transformers` takes tokenizer.json as it is, and adds nothing."""
    ours = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False}
    dropped = ("added_tokens_decoder", "vocab_file", "merges_file", "auto_map", "name_or_path")
    kept = {key: value for key, value in config.items() if key not in dropped}
    return {**kept, **ours, "clean_up_tokenization_spaces": False}


def content(value: Any, default: str) -> str:
    """The text of a special token as configurations spell it: a string, or an object with `content`."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) and found else default


def lines_of(path: Path) -> list[str]:
    """Lines without their ends; a last empty one is none. Only "\\n" ends a line: tokens may hold other separators."""
    found = read_text(path).split("\n")
    if found and not found[-1]:
        found.pop()
    if len(found) > MAX_LINES:
        raise TokenizerError(f"{path}: expected at most {MAX_LINES} lines, got {len(found)}; not a usable tokenizer")
    return [line.removesuffix("\r") for line in found]


def read_text(path: Path) -> str:
    """A UTF-8 file of at most tokenizer.json's size, its line ends kept. Raises TokenizerError."""
    try:
        size = path.stat().st_size
        if size > tokenizer_file.MAX_BYTES:
            raise TokenizerError(f"{path}: expected at most {tokenizer_file.MAX_BYTES} bytes, got {size}")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise TokenizerError(f"{path}: can't be read ({error.strerror or type(error).__name__})") from None
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}, byte {error.start}: expected UTF-8; the file is damaged") from None
