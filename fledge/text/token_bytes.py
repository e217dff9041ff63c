"""`TokenBytes`: what each id adds to a text, as raw bytes. Every kind decodes by joining these, in a stream too.

Where words are joined by spaces (WordPiece, words), and where a dummy space stands before a text (SentencePiece), each
token that begins a word brings its space along and the first space of a text is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fledge.text import sentencepiece_text, tokenizer_file
from fledge.text.byte_alphabet import to_bytes
from fledge.text.sentencepiece_model import SPACE_MARK
from fledge.text.special_tokens import BYTE_TOKEN
from fledge.text.tokenizer_file import TokenizerFile

REPLACEMENT = "\ufffd".encode()
PIECES = ("sentencepiece-bpe", "unigram")
# What a detached English ending or mark becomes. Source: transformers, `clean_up_tokenization`; tokenizers, WordPiece.
CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def clean_up(text: str) -> str:
    """`text` without the spaces that word-wise decoding leaves before marks and English endings. It is not part of
    decoding: it also takes such spaces away where somebody wrote them."""
    for found, replacement in CLEANED:
        text = text.replace(found, replacement)
    return text


class TokenBytes:
    """`table[id]`: bytes, b"" for control tokens and ids without one. `drops_first_space`: a text's first space is not
    part of it; `drops_all_first_spaces`: nor are those that follow it."""

    def __init__(self, file: TokenizerFile, config: dict[str, Any], control: frozenset[int], special: dict[str, int]):
        self.file, self.control, self.special = file, control, special
        self.kind = file.kind
        self.steps = tokenizer_file.walk(file.tree.get("decoder"))
        rules = sentencepiece_text.rules_of(config) if self.kind in PIECES else None
        self.drops_first_space = self.finds_dummy_space() if rules is None else rules.add_dummy_prefix
        self.drops_all_first_spaces = rules is not None and rules.remove_extra_whitespaces
        self.drops_first_space |= self.drops_all_first_spaces
        self.unknown = self.unknown_bytes(config, rules is not None)
        self.has_bytes = self.kind == "sentencepiece-bpe" or bool(file.tree["model"].get("byte_fallback"))
        replaced = any(step.get("pattern") == {"String": SPACE_MARK} for step in self.steps)
        self.marks_spaces = replaced or any(step.get("type") == "Metaspace" for step in self.steps)
        self.table = tuple(self.read(number) for number in range(len(file.tokens)))

    def unknown_bytes(self, config: dict[str, Any], from_model: bool) -> bytes:
        """What the unknown token decodes to: U+FFFD of characters, what a SentencePiece model says, else nothing."""
        if self.kind == "characters":
            return REPLACEMENT
        surface = config[sentencepiece_text.KEY].get("unk_surface") if from_model else None
        return surface.encode("utf-8", "replace") if isinstance(surface, str) else b""

    def finds_dummy_space(self) -> bool:
        """Whether the decoder takes away a space at the beginning that encoding put there."""
        if self.kind in ("wordpiece", "word"):
            return True
        if self.kind not in PIECES:
            return False
        for step in self.steps:
            if step.get("type") == "Strip" and step.get("content") == " " and step.get("start") == 1:
                return True
            if step.get("type") == "Metaspace":
                return step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space") is not False
        return False

    def read(self, number: int) -> bytes:
        token = self.file.tokens[number]
        if number == self.special.get("unk") and self.unknown:
            return self.unknown
        if token is None or number in self.control:
            return b""
        if self.kind == "wordpiece":
            return self.word_piece(token)
        if self.kind == "word":
            return b" " + token.encode()
        if self.kind == "bpe":
            data = to_bytes(token) if number not in self.file.added else None
            return token.encode() if data is None else data
        byte = BYTE_TOKEN.fullmatch(token) if self.kind in PIECES and self.has_bytes else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        return (token.replace(SPACE_MARK, " ") if self.marks_spaces else token).encode()

    def word_piece(self, token: str) -> bytes:
        step = next((step for step in self.steps if step.get("type") == "WordPiece"), None)
        prefix = None if step is None else step.get("prefix", "##")
        if isinstance(prefix, str) and prefix and token.startswith(prefix):
            return token[len(prefix) :].encode()
        spaced = " " + token
        return (clean_up(spaced) if step is not None and step.get("cleanup", True) else spaced).encode()

    def join(self, ids: Iterable[int], bytes_of: Callable[[int], bytes]) -> bytes:
        """The bytes of `ids` without the space that encoding put before the text."""
        left = iter(ids)
        parts = []
        starting = self.drops_first_space
        while starting and (number := next(left, None)) is not None:
            data, starting = self.at_start(number, bytes_of(number))
            parts.append(data)
        return b"".join([*parts, *map(bytes_of, left)])

    def at_start(self, number: int, data: bytes) -> tuple[bytes, bool]:
        """`data` of an id that stands first in a text, and whether the one after it still does."""
        if not data or not self.drops_first_space:
            return data, self.drops_first_space
        if number == self.special.get("unk") and self.kind in PIECES:
            return data, False
        if self.kind == "wordpiece" and not data.startswith(b" "):
            return (self.file.tokens[number] or "").encode(), False  # half a word: nothing says what it belongs to
        kept = data.removeprefix(b" ")  # of each piece one, as SentencePiece does
        return kept, self.drops_all_first_spaces and not kept
