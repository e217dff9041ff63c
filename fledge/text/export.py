"""Writing a tokenizer in the forms that other software reads: GPT-2's and BERT's files, SentencePiece, tiktoken, GGUF.

A form that can't say what a tokenizer does is refused: what is written gives the ids that it was written from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fledge.errors import ConfigError, TokenizerError
from fledge.lineage import CARD, check_writable, make_folder, refuse_without_card, write_text_durably
from fledge.log import warn
from fledge.text import sentencepiece_text, tokenizer_file
from fledge.text.byte_alphabet import to_bytes
from fledge.text.chat import with_format
from fledge.text.config import TokenizerConvertConfig
from fledge.text.gguf_patterns import name_of
from fledge.text.gguf_vocab import PREFIX, ROLES
from fledge.text.gguf_write import write_gguf
from fledge.text.model_check import split_merge
from fledge.text.sentencepiece_model import CONTROL, NORMAL, SPACE_MARK, UNKNOWN, UNUSED, USER_DEFINED, write_model
from fledge.text.sentencepiece_tree import model_of
from fledge.text.tiktoken_file import write_tiktoken
from fledge.text.tokenizer import Tokenizer


def convert_tokenizer(config: TokenizerConvertConfig, json: bool = False) -> dict[str, Any]:
    """`fledge tokenizer convert`: read a tokenizer of any form and write it in another; gives what was written. Raises
    ConfigError where files of those names are there already."""
    if (config.out / CARD).is_file():
        raise ConfigError(f"out: expected a folder of its own, got {config.out}, whose card vouches for what is there")
    check_writable(config.out)
    refuse_without_card(config.out, FILES[config.form], "tokenizer convert")
    tokenizer = with_format(Tokenizer.load(config.tokenizer), config.chat.format)
    folder = make_folder(config.out)
    files = WRITERS[config.form](tokenizer, folder)
    result = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "out": str(folder), "files": files}
    if not json:
        print(f"{folder}: {tokenizer.kind}, {tokenizer.vocab_size} ids: {', '.join(files)}")
    return result


def write_tokenizer_json(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """tokenizer.json, tokenizer_config.json and the chat template, as `Tokenizer.save` writes them."""
    tokenizer.save(folder)
    return [name for name in FILES["tokenizer.json"] if (folder / name).exists()]


def write_gpt2(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """`vocab.json`, `merges.txt` and tokenizer_config.json. Raises TokenizerError unless it is byte-level BPE under
    GPT-2's split pattern."""
    demand(tokenizer, "bpe", "gpt2")
    if tokenizer.file.pattern != "gpt2" or tokenizer.file.tree["model"].get("ignore_merges"):
        raise TokenizerError("gpt2: expected GPT-2's split pattern and way of merging, got others; use tokenizer.json")
    vocab = {token: number for number, token in enumerate(tokenizer.file.tokens) if token is not None}
    merges = [split_merge(merge) for merge in tokenizer.file.tree["model"].get("merges", [])]
    lines = [" ".join(pair) for pair in merges if pair is not None]
    write_text_durably(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    write_text_durably(folder / "merges.txt", "\n".join(["#version: 0.2", *lines, ""]))
    return ["vocab.json", "merges.txt", *write_config(folder, tokenizer, {"tokenizer_class": "GPT2TokenizerFast"})]


def write_bert(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """`vocab.txt` and tokenizer_config.json. Raises TokenizerError unless it is BERT's WordPiece without gaps."""
    demand(tokenizer, "wordpiece", "bert")
    tree, tokens = tokenizer.file.tree, tokenizer.file.tokens
    rules = tree.get("normalizer") or {}
    usual = tree["model"].get("continuing_subword_prefix", "##") == "##" and rules.get("type") == "BertNormalizer"
    if not usual or any(token is None or "\n" in token for token in tokens):
        raise TokenizerError("bert: expected BERT's normalizer, ## pieces and ids without gaps; write tokenizer.json")
    write_text_durably(folder / "vocab.txt", "".join(f"{token}\n" for token in tokens))
    told = {
        "do_lower_case": rules.get("lowercase", True),
        "strip_accents": rules.get("strip_accents"),
        "tokenize_chinese_chars": rules.get("handle_chinese_chars", True),
        "tokenizer_class": "BertTokenizerFast",
    }
    return ["vocab.txt", *write_config(folder, tokenizer, told)]


def write_config(folder: Path, tokenizer: Tokenizer, changes: dict[str, Any]) -> list[str]:
    config = {**tokenizer.config, **changes}
    write_text_durably(folder / tokenizer_file.CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return [tokenizer_file.CONFIG]


def write_sentencepiece(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """`tokenizer.model`. Raises TokenizerError unless the tokenizer is SentencePiece's, or does the same to a text."""
    (folder / "tokenizer.model").write_bytes(write_model(piece_model(tokenizer)))
    return ["tokenizer.model"]


def piece_model(tokenizer: Tokenizer) -> Any:
    """The tokenizer as a PieceModel."""
    tree = tokenizer.file.tree
    steps = tokenizer_file.walk(tree.get("normalizer"))
    rules = sentencepiece_text.rules_of(tokenizer.config)
    if rules is None and tokenizer.kind == "sentencepiece-bpe":
        rules = sentencepiece_text.rules_of_file(steps, tree.get("pre_tokenizer"))
    if rules is None or tokenizer.kind not in ("unigram", "sentencepiece-bpe"):
        raise TokenizerError(
            "sentencepiece: expected a tokenizer read from a SentencePiece model, a BPE that does the same to a text, "
            f"or one trained as lossless unigram, got {tokenizer.kind}; use tokenizer.json"
        )
    charsmap = sentencepiece_text.charsmap_of(steps)
    return model_of(tree, tokenizer.config, rules, charsmap, tokenizer.special, tokenizer.file.tokens)


def write_tiktoken_file(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """`tokenizer.tiktoken`. Raises TokenizerError unless tiktoken gives the same ids."""
    demand(tokenizer, "bpe", "tiktoken")
    if tokenizer.quick is None:
        raise TokenizerError("tiktoken: expected byte-level BPE whose ids rise with its merges; write tokenizer.json")
    tokens = enumerate(tokenizer.file.tokens)
    ranks = {to_bytes(token): i for i, token in tokens if token is not None and i not in tokenizer.file.added}
    known = {token: number for token, number in ranks.items() if token is not None}
    write_text_durably(folder / "tokenizer.tiktoken", write_tiktoken(known))
    return ["tokenizer.tiktoken"]


def demand(tokenizer: Tokenizer, kind: str, form: str) -> None:
    if tokenizer.kind != kind:
        raise TokenizerError(f"{form}: expected a tokenizer of kind {kind}, got {tokenizer.kind}; choose another form")


def write_gguf_vocabulary(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """`vocabulary.gguf`, without tensors."""
    write_gguf(folder / "vocabulary.gguf", {"general.architecture": "llama", **gguf_metadata(tokenizer)})
    return ["vocabulary.gguf"]


def gguf_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `tokenizer.*` entries of a GGUF file. Raises TokenizerError for a kind, or split pattern, that GGUF has no
    name for."""
    makers = {"bpe": bpe_metadata, "wordpiece": bert_metadata}
    make = makers.get(tokenizer.kind, pieces_metadata)
    found = {PREFIX + key: value for key, value in make(tokenizer).items()}
    for role, name in ROLES.items():
        if role in tokenizer.special:
            found[f"{PREFIX}{name}_token_id"] = tokenizer.special[role]
    found |= {PREFIX + "add_bos_token": tokenizer.bos_id is not None, PREFIX + "add_eos_token": False}
    return found | ({"tokenizer.chat_template": tokenizer.template} if tokenizer.template is not None else {})


def bpe_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    tree, tokens = tokenizer.file.tree, tokenizer.file.tokens
    name = name_of(tree.get("pre_tokenizer"), bool(tree["model"].get("ignore_merges")))
    if name is None:
        raise TokenizerError("gguf: expected a published split pattern, got another; GGUF knows patterns by name only")
    check_bpe_text(tokenizer)
    merges = [split_merge(merge) for merge in tree["model"].get("merges", [])]
    return {
        "model": "gpt2",
        "pre": name,
        "tokens": [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)],
        "token_type": np.array([token_type(tokenizer, i) for i in range(len(tokens))], "<i4"),
        "merges": [" ".join(pair) for pair in merges if pair is not None],
    }


def check_bpe_text(tokenizer: Tokenizer) -> None:
    """Raise TokenizerError for what happens to a text before it is split, or around a token of text: GGUF has no place
    for it."""
    steps = tokenizer_file.walk(tokenizer.file.tree.get("normalizer"))
    kinds = [step.get("type") for step in steps if step.get("type") != "Sequence"]
    if kinds == ["NFC"]:
        warn("gguf: the normalizer NFC is left out, as llama.cpp has none: letters whose marks are apart get other ids")
    elif kinds:
        raise TokenizerError(
            f"gguf: expected no normalizer, got {', '.join(map(str, kinds))!r:.60}; GGUF can't say that"
        )
    for number, entry in tokenizer.file.added.items():
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if entry.get(flag)]
        if flags and number not in tokenizer.control:
            raise TokenizerError(
                f"gguf: {entry['content']!r:.40}: expected a token without {flags[0]}, as GGUF can't say that"
            )


def token_type(tokenizer: Tokenizer, number: int) -> int:
    if tokenizer.file.tokens[number] is None:
        return UNUSED
    if number in tokenizer.control:
        return UNKNOWN if number == tokenizer.special.get("unk") else CONTROL
    return USER_DEFINED if number in tokenizer.file.added else NORMAL


def bert_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    found = []
    for number, token in enumerate(tokenizer.file.tokens):
        text = token or f"[PAD{number}]"
        plain = number not in tokenizer.control
        found.append((text[2:] if text.startswith("##") else SPACE_MARK + text) if plain else text)
    types = np.array([token_type(tokenizer, i) for i in range(len(found))], "<i4")
    return {"model": "bert", "pre": "default", "tokens": found, "token_type": types}


def pieces_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    model = piece_model(tokenizer)
    charsmap = {"precompiled_charsmap": np.frombuffer(model.charsmap, np.uint8)} if model.charsmap else {}
    marked = model.escape_whitespaces
    if not marked and (model.kind != "bpe" or any(SPACE_MARK in piece.text for piece in model.pieces)):
        raise TokenizerError("gguf: expected pieces with spaces as U+2581, got plain spaces; GGUF can't say that")
    return {
        "model": "llama" if model.kind == "bpe" else "t5",
        "pre": "default",
        "tokens": [piece.text if marked else piece.text.replace(" ", SPACE_MARK) for piece in model.pieces],
        "scores": np.array([piece.score for piece in model.pieces], "<f4"),
        "token_type": np.array([piece.type for piece in model.pieces], "<i4"),
        "add_space_prefix": model.add_dummy_prefix,
        "remove_extra_whitespaces": model.remove_extra_whitespaces,
        **charsmap,
    }


WRITERS = {
    "tokenizer.json": write_tokenizer_json,
    "gpt2": write_gpt2,
    "bert": write_bert,
    "sentencepiece": write_sentencepiece,
    "tiktoken": write_tiktoken_file,
    "gguf": write_gguf_vocabulary,
}
FILES = {
    "tokenizer.json": ("tokenizer.json", tokenizer_file.CONFIG, tokenizer_file.TEMPLATE),
    "gpt2": ("vocab.json", "merges.txt", tokenizer_file.CONFIG),
    "bert": ("vocab.txt", tokenizer_file.CONFIG),
    "sentencepiece": ("tokenizer.model",),
    "tiktoken": ("tokenizer.tiktoken",),
    "gguf": ("vocabulary.gguf",),
}
"""What each writes, or takes away."""
