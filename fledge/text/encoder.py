"""`Encoder`: ids of plain text under a checked tokenizer file, by the `tokenizers` library and what it gets wrong.

Control tokens are hidden from the library, so that no text can become one: they keep their ids under names that nobody
can type. What SentencePiece does to a text is done here (`sentencepiece_text.py`), and so are bytes for what a Unigram
model doesn't know: the library would read the letters `<0x41>` as a byte.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tokenizers

from fledge.errors import FledgeError, TokenizerError
from fledge.text import sentencepiece_text, tokenizer_file, unigram_exact
from fledge.text.sentencepiece_text import KEY
from fledge.text.tokenizer_file import TokenizerFile

Result = TypeVar("Result")

GAP = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
LONG_PIECE = 32  # characters; common pieces have 16 at most
PROBE_CHARACTERS = 5_000
PROBE_SECONDS = 0.02  # a megabyte then takes 4 s; models in use take a tenth of that


class Encoder:
    """Ids of texts, none of them of `control` unless it is the unknown token. `library` is the Rust tokenizer."""

    def __init__(self, file: TokenizerFile, config: dict[str, Any], control: frozenset[int], unknown: int | None):
        self.unknown = unknown
        self.prepare: Callable[[str], str] | None = None
        self.exact: unigram_exact.ExactUnigram | None = None
        self.bytes = byte_ids(file) if file.kind == "unigram" and file.tree["model"].get("byte_fallback") else ()
        hidden = set(control) | set(self.bytes)
        rules = sentencepiece_text.rules_of(config)
        if rules is not None and file.kind in ("unigram", "sentencepiece-bpe"):
            steps = tokenizer_file.walk(file.tree.get("normalizer"))
            kept = [entry["content"] for number, entry in file.added.items() if number not in control]
            self.prepare = sentencepiece_text.preparer(rules, sentencepiece_text.charsmap_of(steps), kept)
            unused = config[KEY].get("unused")
            hidden |= {number for number in unused if isinstance(number, int)} if isinstance(unused, list) else set()
            self.exact = exact_unigram(file, hidden) if file.kind == "unigram" else None
        self.library = build(file, control, frozenset(hidden), raw=self.prepare is not None)
        self.library.encode_special_tokens = True  # they are text here

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Raises TokenizerError if the library does."""
        prepared = list(texts) if self.prepare is None else [self.prepare(text) for text in texts]
        if self.exact is None:
            return self.by_library(prepared)
        hard = {place for place, text in enumerate(prepared) if unigram_exact.needs_exact(text)}
        found = self.by_library([text if place not in hard else "" for place, text in enumerate(prepared)])
        for place in hard:
            found[place] = self.exactly(prepared[place])
        return found

    def by_library(self, texts: list[str]) -> list[list[int]]:
        encodings = guarded(lambda: self.library.encode_batch_fast(texts, add_special_tokens=False))
        found = [encoding.ids for encoding in encodings]
        for place, ids in enumerate(found):
            if self.bytes and self.unknown in ids:
                whole = self.library.encode(texts[place], add_special_tokens=False)  # the fast way leaves out surfaces
                found[place] = self.spelled(zip(whole.ids, whole.tokens, strict=True))
        return found

    def exactly(self, text: str) -> list[int]:
        assert self.exact is not None
        return self.spelled((self.unknown if i < 0 else i, surface) for i, surface in self.exact.cut(text))

    def spelled(self, tokens: Any) -> list[int]:
        """Ids of (id, surface) pairs, with the bytes of what is unknown if the model has bytes."""
        ids: list[int] = []
        for number, surface in tokens:
            if self.bytes and number == self.unknown:
                ids += [self.bytes[byte] for byte in surface.encode()]
            else:
                ids.append(number)
        return ids


def byte_ids(file: TokenizerFile) -> tuple[int, ...]:
    """The ids of `<0x00>` to `<0xFF>`; () unless all are there."""
    ids = {token: number for number, token in enumerate(file.tokens) if token is not None}
    found = [ids.get(f"<0x{byte:02X}>") for byte in range(256)]
    return () if None in found else tuple(number for number in found if number is not None)


def exact_unigram(file: TokenizerFile, hidden: set[int]) -> unigram_exact.ExactUnigram:
    pieces, least = [], 0.0
    for number, (text, score) in enumerate(file.tree["model"]["vocab"]):
        if number not in hidden:
            user_defined = number in file.added
            pieces.append((text, unigram_exact.user_defined_score(text) if user_defined else score, number))
            least = least if user_defined else min(least, score)
    return unigram_exact.ExactUnigram(pieces, least)


def build(
    file: TokenizerFile, control: frozenset[int], hidden: frozenset[int] = frozenset(), raw: bool = False
) -> tokenizers.Tokenizer:
    """The library's tokenizer of a checked file. Tokens of `control` are not recognised in a text, those of `hidden`
    are none of its model's either. `raw`: texts come prepared, without normalizer and pre-tokenizer. Truncation,
    padding and post-processing of the file are left out: they would cut, pad or add BOS."""
    tree = {**file.tree, "truncation": None, "padding": None, "post_processor": None}
    if raw:
        tree |= {"normalizer": None, "pre_tokenizer": None}
    added = [{**entry, "special": entry.get("special") is True or i in control} for i, entry in file.added.items()]
    salt = secrets.token_hex(8)  # a name that a text can't know
    matching = file.kind in ("unigram", "wordpiece", "word")
    names = {number: f"\ufdd0{salt}:{number}" for number in hidden} if matching else {}
    tree["model"] = renamed(file, names) if names else file.tree["model"]
    added = [{**entry, "content": names.get(entry["id"], entry["content"])} for entry in added]
    added += [{**GAP, "id": i, "content": f"\ufdd0{salt}:{i}"} for i, token in enumerate(file.tokens) if token is None]
    tree["model"], added = without_gaps(tree["model"], sorted(added, key=lambda entry: entry["id"]))
    return guarded(lambda: tokenizers.Tokenizer.from_str(json.dumps({**tree, "added_tokens": added})))


def without_gaps(model: dict[str, Any], added: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The library numbers added tokens one after the other behind the model's own, whatever ids they name. So those
    below the model's highest id are made tokens of the model, as which they keep theirs."""
    vocab = model["vocab"]
    if not isinstance(vocab, dict):
        return model, added
    highest = max(vocab.values(), default=-1)
    inside = {entry["content"]: entry["id"] for entry in added if entry["id"] < highest}
    taken = set(vocab.values())
    missing = {token: number for token, number in inside.items() if number not in taken}
    return ({**model, "vocab": {**vocab, **missing}} if missing else model), added


def renamed(file: TokenizerFile, names: dict[int, str]) -> dict[str, Any]:
    """The file's model with other spellings for some ids."""
    model = dict(file.tree["model"])
    if file.kind == "unigram":
        vocab = model["vocab"]
        changed = [[names.get(number, entry[0]), entry[1]] for number, entry in enumerate(vocab)]
        return {**model, "vocab": changed, "byte_fallback": False}
    unknown = model.get("unk_token")
    place = model["vocab"].get(unknown)
    model["vocab"] = {names.get(number, token): number for token, number in model["vocab"].items()}
    model["unk_token"] = names.get(place, unknown)
    return model


def guarded(call: Callable[[], Result]) -> Result:
    """`call()`, with whatever the Rust side raises, panics included, as TokenizerError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError, FledgeError):
        raise
    except BaseException as error:  # a Rust panic arrives as a BaseException of its own
        raise TokenizerError(f"tokenizer: {str(error)[:160] or type(error).__name__}") from None


def refuse_slow_pieces(file: TokenizerFile, encode: Callable[[str], Any]) -> None:
    """Raises TokenizerError if a Unigram model with long pieces takes too long over a text made of its longest: the
    time grows with the text's length times the piece's."""
    longest = max((token or "" for token in file.tokens), key=len)
    if file.kind != "unigram" or len(longest) <= LONG_PIECE:
        return
    text = (longest * PROBE_CHARACTERS)[:PROBE_CHARACTERS]
    times = []
    for _ in range(2):  # the first warms up
        began = time.thread_time()
        encode(text)
        times.append(time.thread_time() - began)
    if min(times) > PROBE_SECONDS:
        raise TokenizerError(f"tokenizer: a piece of {len(longest)} characters makes encoding too slow; refused")


def check_unicode(text: str) -> None:
    """Raises TokenizerError for a text that is not Unicode: one with half of a surrogate pair."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text: expected Unicode, got a lone surrogate at character {error.start}; replace it with U+FFFD"
        ) from None
