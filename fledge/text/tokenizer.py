"""`Tokenizer`: text to ids and back; one face over byte-level BPE, SentencePiece's BPE and Unigram, WordPiece, words
and characters.

Two rules hold for every kind. `encode` never adds BOS or EOS: who lays a sequence out (the chat renderer, the shard
writer, a prompt) puts BOS there, once; so `add_bos_token` is false in what we save. And text is never control: the
string `<|eos|>` typed by a user is encoded as those seven characters; only `parse_special=True` reads it as a token.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from fledge.errors import TokenizerError
from fledge.lineage import make_folder, sha256_json, write_text_durably
from fledge.text import fast, formats, pattern, regex_check, special_tokens, tokenizer_file
from fledge.text.byte_alphabet import BYTE_OF, CHARACTER_OF
from fledge.text.encoder import Encoder, build, check_unicode, guarded, refuse_slow_pieces
from fledge.text.framing import Framed, Framing
from fledge.text.model_check import split_merge
from fledge.text.sentencepiece_text import KEY
from fledge.text.special_tokens import SPECIAL_TOKENS, UNKNOWN
from fledge.text.token_bytes import TokenBytes, clean_up


class Tokenizer:
    """`encode`, `decode` and what is known of each id. Ids are 0..vocab_size-1; some foreign files leave gaps.

    `kind` is "bpe" (byte-level), "sentencepiece-bpe", "unigram", "wordpiece", "word" or "characters"; `special` maps
    roles (bos eos pad unk cls sep mask system user assistant end) to ids; `template` is the chat template that came
    with it.
    """

    def __init__(
        self, file: tokenizer_file.TokenizerFile, config: dict[str, Any] | None = None, template: str | None = None
    ):
        file = tokenizer_file.completed(file, config or {})
        self.file, self.config, self.template = file, dict(config or {}), template
        self.kind = file.kind
        self.vocab_size = len(file.tokens)
        self.ids_by_token = {token: number for number, token in enumerate(file.tokens) if token is not None}
        self.special = special_tokens.roles(file, self.config, self.ids_by_token)
        self.control = special_tokens.control_ids(file, self.config, self.ids_by_token)
        # What is unknown may become `unk` without anybody having typed its name; byte-level BPE knows every byte.
        unknown = self.special.get("unk")
        complete = self.kind == "bpe" and all(character in self.ids_by_token for character in BYTE_OF)
        self.forbidden = self.control if complete else self.control - {-1 if unknown is None else unknown}
        self.encoder = Encoder(file, self.config, self.control, unknown)
        self.plain = self.encoder.library
        regex_check.refuse_slow(tokenizer_file.regexes(file.tree), self.probe)
        refuse_slow_pieces(file, self.probe)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a file or folder of any form that `formats.read` knows: tokenizer.json, SentencePiece, tiktoken, GPT-2's
        and BERT's files, GGUF; a tokenizer, model, dataset or run folder, ours or Hugging Face's. Raises
        TokenizerError."""
        return cls(*formats.read(path))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json (to the byte as it was read), tokenizer_config.json and the chat template, if any.
        `transformers` reads them with `AutoTokenizer` and gives equal ids."""
        folder = make_folder(folder)
        write_text_durably(folder / "tokenizer.json", self.file.text)
        write_text_durably(folder / tokenizer_file.CONFIG, self.config_text() + "\n")
        if self.template is not None:
            write_text_durably(folder / tokenizer_file.TEMPLATE, self.template)
        else:
            (folder / tokenizer_file.TEMPLATE).unlink(missing_ok=True)  # of another tokenizer, that would be read

    def config_text(self) -> str:
        """The configuration as JSON; half a surrogate pair, which a foreign file may name, stays an escape."""
        try:
            text = json.dumps(self.config, indent=2, ensure_ascii=False)
            text.encode()
            return text
        except UnicodeEncodeError:
            return json.dumps(self.config, indent=2)
        except RecursionError:
            raise TokenizerError(
                f"{tokenizer_file.CONFIG}: expected values nested less deeply; can't be written"
            ) from None

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of what decides ids: normalizer, pre-tokenizer, model, added tokens and the special roles."""
        tree = self.file.tree
        model = {key: value for key, value in tree["model"].items() if key != "merges"}
        merges = [split_merge(merge) for merge in tree["model"].get("merges", [])]
        parts = {key: tree.get(key) for key in ("normalizer", "pre_tokenizer", "added_tokens")}
        parts |= {KEY: self.config[KEY]} if KEY in self.config else {}
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
        found = self.encoder.encode_batch(texts)
        for place, ids in enumerate(found):
            if not self.forbidden.isdisjoint(ids):
                found[place] = self.encode_apart(texts[place])
        return found

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode` of each text, and which of its characters each token stands for; without the spaces beside them
        where the file says so. Raises TokenizerError where that can't be told: for letters that would join to a control
        token, and for some files of SentencePiece."""
        spans = guarded(lambda: self.plain.encode_batch(list(texts), add_special_tokens=False))
        found = []
        for text, ids, told in zip(texts, self.encode_batch(texts), spans, strict=True):
            if told.ids != ids:
                raise TokenizerError("text: this tokenizer can't tell which characters its tokens stand for")
            kept = self.framing.trimming
            found.append((ids, [span if kept is None else trimmed(text, *span, kept) for span in told.offsets]))
        return found

    def encode_array(self, text: str) -> np.ndarray:
        """`encode(text)` as uint32 [n], by the fastest way at hand: several times quicker with tiktoken installed."""
        quick = self.quick.encode(text) if self.quick is not None else None
        if quick is not None:
            return quick
        check_unicode(text)
        if self.alphabet is not None:
            return self.alphabet.encode(text)
        name = self.file.pattern if fast.is_plain(self.file, self.control) else None
        parts = list(pattern.pieces(text, name, fast.PIECE_CHARACTERS)) if name is not None else [text]
        found = [np.array(ids, dtype=np.uint32) for ids in self.encode_batch(parts)]
        return np.concatenate(found) if found else np.zeros(0, np.uint32)

    def encode_apart(self, text: str) -> list[int]:
        """Ids of a text in which the model itself would join the letters of a control token: each such spelling is cut
        after its first character. Raises TokenizerError if even that leads to a control token."""
        spellings = sorted((re.escape(self.file.tokens[i] or "\0") for i in self.forbidden), key=len, reverse=True)
        parts = re.split(f"(?<=(?=(?:{'|'.join(spellings)})).)", text, flags=re.DOTALL)
        ids = [number for found in self.encoder.encode_batch(parts) for number in found]
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

    def frame(self, ids: Sequence[int], more: Sequence[int] | None = None) -> Framed:
        """`ids` of one text, or of two, with the special tokens that the model wants around them (`[CLS]` and `[SEP]`
        of BERT, `</s>` of T5), as the file's post-processor says; nothing is added where it says nothing."""
        return self.framing.frame(ids, more)

    @cached_property
    def framing(self) -> Framing:
        return Framing(self.file.tree.get("post_processor"), self.vocab_size)

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

    def decode(self, ids: Iterable[int], skip_special: bool = True, cleaned: bool = False) -> str:
        """Text of `ids`. Bytes that are not UTF-8 become U+FFFD; an unfinished character at the very end is left out,
        as a stream would leave it. Ids without a token decode to nothing. `cleaned`: without spaces before marks and
        English endings, as `transformers` can show it (`clean_up_tokenization_spaces`)."""
        data = self.pieces.join(ids, self.token_bytes if skip_special else self.spelled)
        text = codecs.utf_8_decode(data, "replace", False)[0]
        return clean_up(text) if cleaned else text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`, special tokens left out. A space that encoding put at the beginning is dropped."""
        return self.pieces.join(ids, self.token_bytes)

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token; b"" for a special token or an id without one. `unk` of characters is U+FFFD."""
        return self.pieces.table[token_id] if 0 <= token_id < self.vocab_size else b""

    def spelled(self, token_id: int) -> bytes:
        """The bytes of one token, a special one by its name, between words with a space before it."""
        if not self.is_special(token_id):
            return self.token_bytes(token_id)
        return (" " if self.kind in ("wordpiece", "word") else "").encode() + self.token_of(token_id).encode()

    @cached_property
    def pieces(self) -> TokenBytes:
        return TokenBytes(self.file, self.config, self.control, self.special)

    @property
    def drops_first_space(self) -> bool:
        """Whether encoding puts a space before a text, so that decoding takes one away."""
        return self.pieces.drops_first_space

    # What is known of an id

    def is_special(self, token_id: int) -> bool:
        return token_id in self.control

    def id_of(self, token: str) -> int | None:
        return self.ids_by_token.get(token)

    def token_of(self, token_id: int) -> str:
        """The token as its vocabulary spells it; "" for an id without one."""
        found = self.file.tokens[token_id] if 0 <= token_id < self.vocab_size else None
        return found or ""

    def written(self, tokens: Sequence[str]) -> str:
        """Tokens, as the vocabulary spells them, as text; transformers' `token_str` of one."""
        decoder = self.plain.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

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


def trimmed(text: str, start: int, end: int, kept: int) -> tuple[int, int]:
    """A span without the spaces at its ends, but for the first `kept` of the text."""
    whole = text[start:end]
    begin = start + max(0, len(whole) - len(whole.lstrip()) - (kept if start == 0 else 0))
    return begin, max(begin, start + len(whole.rstrip()))


def tokenizer_beside(folder: Path) -> Tokenizer | None:
    """The tokenizer that stands in a model's folder, in whatever form; None if there is none."""
    return None if formats.known_form(folder) is None else Tokenizer.load(folder)


def from_text(text: str, config: dict[str, Any] | None = None, template: str | None = None) -> Tokenizer:
    """A Tokenizer from the text of a tokenizer.json."""
    return Tokenizer(tokenizer_file.parse(text), config, template)


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
