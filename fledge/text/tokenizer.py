"""`Tokenizer`: text to ids and back; one face over byte-level BPE, SentencePiece-like BPE and characters.

Two rules hold for every kind. `encode` never adds BOS or EOS: who lays a sequence out (the chat renderer, the shard
writer, a prompt) puts BOS there, once; so `add_bos_token` is false in what we save. And text is never control: the
string `<|eos|>` typed by a user is encoded as those seven characters; only `parse_special=True` reads it as a token.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tokenizers

from fledge.errors import FledgeError, TokenizerError
from fledge.lineage import make_folder, sha256_json, write_text_durably
from fledge.text import fast, pattern, special_tokens, tokenizer_file
from fledge.text.byte_alphabet import CHARACTER_OF, to_bytes
from fledge.text.special_tokens import SPECIAL_TOKENS, UNKNOWN

Result = TypeVar("Result")

REPLACEMENT = "\ufffd".encode()
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
SPACE_MARK = "\u2581"  # SentencePiece writes a space so


class Tokenizer:
    """`encode`, `decode` and what is known of each id. Ids are 0..vocab_size-1; some foreign files leave gaps.

    `kind` is "bpe" (byte-level), "sentencepiece-bpe" or "characters"; `special` maps roles (bos eos pad unk system user
    assistant end) to ids; `template` is the chat template that came with the folder, if any.
    """

    def __init__(
        self, file: tokenizer_file.TokenizerFile, config: dict[str, Any] | None = None, template: str | None = None
    ):
        self.file, self.config, self.template = file, dict(config or {}), template
        self.kind = file.kind
        self.vocab_size = len(file.tokens)
        self.ids_by_token = {token: number for number, token in enumerate(file.tokens) if token is not None}
        self.special = special_tokens.roles(file, self.config, self.ids_by_token)
        self.control = special_tokens.control_ids(file, self.config, self.ids_by_token)
        # An unknown character may become `unk` without anybody having typed its name.
        self.forbidden = self.control if self.kind == "bpe" else self.control - {self.special.get("unk", -1)}
        self.plain = build(file, self.control)
        pattern.refuse_slow(tokenizer_file.regexes(file.tree), self.probe)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a tokenizer.json, or a folder with one: a tokenizer, model, dataset or run folder, ours or Hugging
        Face's. Code named by the folder is not run. Raises TokenizerError."""
        path = Path(path)
        if path.is_dir():
            places = [path / part / "tokenizer.json" for part in ("", "tokenizer", "model")]
            path = next((place for place in places if place.is_file()), places[0])
        config = tokenizer_file.read_object(path.parent / tokenizer_file.CONFIG)
        for key, value in tokenizer_file.read_object(path.parent / "special_tokens_map.json").items():
            config.setdefault(key, value)
        template = tokenizer_file.read_template(
            path.parent / tokenizer_file.TEMPLATE, config.pop("chat_template", None)
        )
        config.pop("auto_map", None)  # names code of the folder's author
        return cls(tokenizer_file.read(path), config, template)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json (to the byte as it was read), tokenizer_config.json and the chat template, if any.
        `transformers` reads them with `AutoTokenizer` and gives equal ids."""
        folder = make_folder(folder)
        write_text_durably(folder / "tokenizer.json", self.file.text)
        write_text_durably(folder / tokenizer_file.CONFIG, json.dumps(self.config, indent=2, ensure_ascii=False) + "\n")
        if self.template is not None:
            write_text_durably(folder / tokenizer_file.TEMPLATE, self.template)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of what decides ids: normalizer, pre-tokenizer, model, added tokens and the special roles."""
        tree = self.file.tree
        model = {key: value for key, value in tree["model"].items() if key != "merges"}
        merges = [tokenizer_file.split_merge(merge) for merge in tree["model"].get("merges", [])]
        parts = {key: tree.get(key) for key in ("normalizer", "pre_tokenizer", "added_tokens")}
        return sha256_json({**parts, "model": model, "merges": merges, "special": self.special})

    # Text to ids

    def probe(self, text: str) -> None:
        guarded(lambda: self.plain.encode(text, add_special_tokens=False))

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Ids of `text`, without BOS or EOS. Text that spells a special token stays text, unless `parse_special`
        (for trusted templates only). Raises TokenizerError for text that is not Unicode (a lone surrogate)."""
        check_unicode(text)
        if parse_special:
            return guarded(lambda: self.trusted.encode(text, add_special_tokens=False).ids)
        if self.alphabet is not None:
            return self.alphabet.encode(text).tolist()
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        for text in texts:
            check_unicode(text)
        if self.alphabet is not None:
            return [self.alphabet.encode(text).tolist() for text in texts]
        encodings = guarded(lambda: self.plain.encode_batch_fast(list(texts), add_special_tokens=False))
        found = [encoding.ids for encoding in encodings]
        for place, ids in enumerate(found):
            if not self.forbidden.isdisjoint(ids):
                found[place] = self.encode_apart(texts[place])
        return found

    def encode_array(self, text: str) -> np.ndarray:
        """`encode(text)` as uint32 [n], by the fastest way at hand: several times quicker with tiktoken installed."""
        check_unicode(text)
        if self.alphabet is not None:
            return self.alphabet.encode(text)
        quick = self.quick.encode(text) if self.quick is not None else None
        if quick is not None:
            return quick
        name = self.file.pattern if fast.is_plain(self.file, self.control) else None
        parts = list(pattern.pieces(text, name, fast.PIECE_CHARACTERS)) if name is not None else [text]
        found = [np.array(ids, dtype=np.uint32) for ids in self.encode_batch(parts)]
        return np.concatenate(found) if found else np.zeros(0, np.uint32)

    def encode_apart(self, text: str) -> list[int]:
        """Ids of a text in which the model itself would join the letters of a control token: each such spelling is cut
        after its first character. Raises TokenizerError if even that leads to a control token."""
        spellings = sorted((re.escape(self.file.tokens[i] or "\0") for i in self.forbidden), key=len, reverse=True)
        parts = re.split(f"(?<=(?=(?:{'|'.join(spellings)})).)", text, flags=re.DOTALL)
        encodings = guarded(lambda: self.plain.encode_batch_fast(parts, add_special_tokens=False))
        ids = [number for encoding in encodings for number in encoding.ids]
        if not self.forbidden.isdisjoint(ids):
            token = self.token_of(min(self.forbidden.intersection(ids)))
            raise TokenizerError(
                f"text: spells the control token {token!r:.40}, which this tokenizer can't write as text"
            )
        return ids

    @cached_property
    def trusted(self) -> tokenizers.Tokenizer:
        """The tokenizer as its file says: special tokens in the text become special ids."""
        return build(self.file, frozenset())

    @cached_property
    def quick(self) -> fast.QuickEncoder | None:
        return fast.quick_encoder(self.file, self.control, self.plain)

    @cached_property
    def alphabet(self) -> fast.Alphabet | None:
        """Characters to ids by table; None for the other kinds."""
        if self.kind != "characters":
            return None
        tokens = enumerate(self.file.tokens)
        singles = {token: i for i, token in tokens if token and len(token) == 1 and i not in self.control}
        return fast.Alphabet(singles, self.special.get("unk"))

    # Ids to text

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`. Bytes that are not UTF-8 become U+FFFD; an unfinished character at the very end is left out,
        as a stream would leave it. Ids without a token decode to nothing."""
        data = self.decode_bytes(ids) if skip_special else self.join(self.spelled(i) for i in ids)
        return codecs.utf_8_decode(data, "replace", False)[0]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`, special tokens left out. SentencePiece's dummy space at the beginning is dropped."""
        return self.join(self.token_bytes(i) for i in ids)

    def join(self, parts: Iterable[bytes]) -> bytes:
        data = b"".join(parts)
        return data[1:] if self.drops_first_space and data.startswith(b" ") else data

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token; b"" for a special token or an id without one. `unk` of characters is U+FFFD."""
        return self.bytes_by_id[token_id] if 0 <= token_id < self.vocab_size else b""

    def spelled(self, token_id: int) -> bytes:
        return self.token_of(token_id).encode() if self.is_special(token_id) else self.token_bytes(token_id)

    @cached_property
    def bytes_by_id(self) -> tuple[bytes, ...]:
        return tuple(self.read_token(number) for number in range(self.vocab_size))

    def read_token(self, number: int) -> bytes:
        token = self.file.tokens[number]
        if self.kind == "characters" and number == self.special.get("unk"):
            return REPLACEMENT
        if token is None or number in self.control:
            return b""
        if number in self.file.added:
            return token.encode()
        if self.kind == "bpe":
            data = to_bytes(token)
            return token.encode() if data is None else data
        byte = BYTE_TOKEN.fullmatch(token) if self.kind == "sentencepiece-bpe" else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        return (token.replace(SPACE_MARK, " ") if self.marks_spaces else token).encode()

    @cached_property
    def decoder_steps(self) -> list[dict[str, Any]]:
        return tokenizer_file.walk(self.file.tree.get("decoder"))

    @cached_property
    def marks_spaces(self) -> bool:
        """Whether a space is written as U+2581 in the vocabulary."""
        replaced = any(step.get("pattern") == {"String": SPACE_MARK} for step in self.decoder_steps)
        return replaced or any(step.get("type") == "Metaspace" for step in self.decoder_steps)

    @cached_property
    def drops_first_space(self) -> bool:
        """Whether encoding puts a dummy space before a text, so that decoding takes one away."""
        if self.kind != "sentencepiece-bpe":
            return False
        for step in self.decoder_steps:
            if step.get("type") == "Strip" and step.get("content") == " " and step.get("start") == 1:
                return True
            if step.get("type") == "Metaspace":
                return step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space") is not False
        return False

    # What is known of an id

    def is_special(self, token_id: int) -> bool:
        return token_id in self.control

    def id_of(self, token: str) -> int | None:
        return self.ids_by_token.get(token)

    def token_of(self, token_id: int) -> str:
        """The token as its vocabulary spells it; "" for an id without one."""
        found = self.file.tokens[token_id] if 0 <= token_id < self.vocab_size else None
        return found or ""

    @property
    def bos_id(self) -> int | None:
        return self.special.get("bos")

    @property
    def eos_id(self) -> int | None:
        return self.special.get("eos")

    @property
    def pad_id(self) -> int | None:
        return self.special.get("pad")

    @property
    def end_id(self) -> int | None:
        """The end-of-turn token of a chat."""
        return self.special.get("end")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: EOS, the end of a turn, and what `stop_tokens` in the configuration names."""
        named = self.config.get("stop_tokens")
        listed = [self.id_of(token) for token in named if isinstance(token, str)] if isinstance(named, list) else []
        return tuple(sorted({i for i in (self.eos_id, self.end_id, *listed) if i is not None}))

    def __reduce__(self) -> tuple[Any, ...]:
        return from_text, (self.file.text, self.config, self.template)

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} ids, {self.digest[:12]})"


def from_text(text: str, config: dict[str, Any] | None = None, template: str | None = None) -> Tokenizer:
    """A Tokenizer from the text of a tokenizer.json."""
    return Tokenizer(tokenizer_file.parse(text), config, template)


def build(file: tokenizer_file.TokenizerFile, control: frozenset[int]) -> tokenizers.Tokenizer:
    """The Rust tokenizer of a checked file. Tokens of `control` are not recognised in a text. Truncation, padding and
    post-processing of the file are left out: they would cut, pad or add BOS."""
    tree = {**file.tree, "truncation": None, "padding": None, "post_processor": None}
    added = [{**entry, "special": entry.get("special") is True or i in control} for i, entry in file.added.items()]
    built = guarded(lambda: tokenizers.Tokenizer.from_str(json.dumps({**tree, "added_tokens": added})))
    built.encode_special_tokens = bool(control)
    return built


def guarded(call: Callable[[], Result]) -> Result:
    """`call()`, with whatever the Rust side raises, panics included, as TokenizerError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError, FledgeError):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException of its own
        raise TokenizerError(f"tokenizer: {str(error)[:160] or type(error).__name__}") from None


def check_unicode(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text: expected Unicode, got a lone surrogate at character {error.start}; replace it with U+FFFD"
        ) from None


# Making tokenizers


def our_config(special: Sequence[str]) -> dict[str, Any]:
    """tokenizer_config.json for a tokenizer of ours."""
    roles = {"bos_token": special_tokens.BOS, "eos_token": special_tokens.EOS, "pad_token": special_tokens.PAD}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: token for key, token in {**roles, "unk_token": UNKNOWN}.items() if token in special},
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }


def assemble(parts: dict[str, Any], n_ordinary: int, special: Sequence[str]) -> Tokenizer:
    """A tokenizer of ours from the `parts` of its file, special tokens after the `n_ordinary` other ids."""
    base = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None}
    added = special_tokens.special_entries(tuple(special), n_ordinary)
    tree = {**base, **parts, "added_tokens": added}
    return from_text(json.dumps(tree, ensure_ascii=False, indent=1), our_config(special))


def byte_bpe(
    vocab: dict[str, int], merges: list[Any], pattern_name: str, special: Sequence[str] = SPECIAL_TOKENS
) -> Tokenizer:
    """Byte-level BPE from a vocabulary in GPT-2's alphabet and its merges, first one first."""
    model = {"type": "BPE", "dropout": None, "unk_token": None, "ignore_merges": False}
    parts = {
        "pre_tokenizer": pattern.pre_tokenizer_of(pattern_name),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {**model, "vocab": vocab, "merges": merges},
    }
    return assemble(parts, len(vocab), special)


def byte_level(special: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    """The 256 bytes, each its own id by value, then the special tokens: nothing to train, nothing unknown."""
    return byte_bpe({CHARACTER_OF[byte]: byte for byte in range(256)}, [], "gpt2", special)


def characters(text: str, special: Sequence[str] = ()) -> Tokenizer:
    """Every character of `text` an id, in order of code point, then `<|unk|>` and the `special` tokens asked for.
    Lossless on text of the same characters; others become `unk`, which decodes to U+FFFD."""
    check_unicode(text)
    if not text:
        raise TokenizerError("characters: expected text to take the characters from, got none; check the corpus")
    alphabet = sorted(set(text))
    vocab = {character: number for number, character in enumerate([*alphabet, UNKNOWN])}
    split = {"type": "Split", "pattern": {"Regex": pattern.EVERY_CHARACTER}, "behavior": "Isolated", "invert": False}
    parts = {
        "pre_tokenizer": split,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN},
    }
    return assemble(parts, len(alphabet), (UNKNOWN, *special))
