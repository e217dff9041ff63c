"""SentencePiece's way from a text to what its model sees, and the settings of it that a tokenizer's folder keeps.

Characters are rewritten by the model's charsmap; spaces at both ends go and runs of them become one, if the model says
so; a dummy space is put first; a space is written U+2581. The `tokenizers` library does this nearly so: its charsmap
goes by grapheme clusters, which gives other ids where marks pile up. So this package does it itself.
Source: google/sentencepiece, src/normalizer.cc, `Normalizer::Normalize`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from fledge.errors import TokenizerError
from fledge.text.charsmap import read_charsmap, rewriter
from fledge.text.sentencepiece_model import SPACE_MARK, PieceModel

KEY = "sentencepiece"  # in tokenizer_config.json
SPACES = re.compile(" {2,}")


@dataclass(frozen=True)
class TextRules:
    """What a model does to a text before its pieces are found."""

    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def rules_of(config: dict[str, Any]) -> TextRules | None:
    """The rules that tokenizer_config.json keeps, or None if the tokenizer does not come from SentencePiece.
    Raises TokenizerError for rules of a wrong type."""
    entry = config.get(KEY)
    if entry is None:
        return None
    names = [field.name for field in fields(TextRules)]
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), bool) for name in names):
        raise TokenizerError(f"tokenizer_config.json: {KEY}: expected {', '.join(names)}, each true or false")
    return TextRules(**{name: entry[name] for name in names})


def rules_of_file(normalizer: Iterable[dict[str, Any]], pre_tokenizer: Any) -> TextRules | None:
    """The same from the steps of a tokenizer.json's normalizer and its pre-tokenizer; None for what SentencePiece
    doesn't do."""
    dummy = escape = False
    for step in normalizer:
        kind, pattern = step.get("type"), step.get("pattern")
        if kind == "Prepend" and step.get("prepend") in (" ", SPACE_MARK) and not dummy:
            dummy = True
        elif kind == "Replace" and pattern == {"String": " "} and step.get("content") == SPACE_MARK and not escape:
            escape = True
        elif kind != "Sequence":
            return None
    if pre_tokenizer is not None:
        scheme = pre_tokenizer.get("prepend_scheme", "always")
        plain = pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("replacement") == SPACE_MARK
        if not plain or pre_tokenizer.get("split", True) or dummy or escape:
            return None
        dummy, escape = scheme != "never", True
    return TextRules(add_dummy_prefix=dummy, remove_extra_whitespaces=False, escape_whitespaces=escape)


def rules_of_model(model: PieceModel) -> TextRules:
    return TextRules(model.add_dummy_prefix, model.remove_extra_whitespaces, model.escape_whitespaces)


def charsmap_of(steps: Iterable[dict[str, Any]]) -> bytes:
    """The charsmap among a tokenizer.json's normalizers; b"" if there is none. Raises TokenizerError."""
    for step in steps:
        if step.get("type") == "Precompiled":
            try:
                return base64.b64decode(str(step.get("precompiled_charsmap")), validate=True)
            except (binascii.Error, ValueError):
                raise TokenizerError("tokenizer.json: normalizer: expected a charsmap in base64; damaged") from None
    return b""


def preparer(rules: TextRules, charsmap: bytes, kept: Iterable[str] = ()) -> Callable[[str], str]:
    """A function from a text to what the model sees. A text of `kept` (user-defined pieces) is never rewritten, nor are
    runs of spaces within it."""
    rewrite = rewriter(read_charsmap(charsmap))
    spellings = sorted(kept, key=len, reverse=True)
    needed = spellings and (charsmap or any("  " in spelling for spelling in spellings))
    apart = re.compile(f"({'|'.join(map(re.escape, spellings))})") if needed else None
    space = SPACE_MARK if rules.escape_whitespaces else " "

    def prepare(text: str) -> str:
        if apart is None:
            text = rewrite(text)
        else:
            parts = [part if place % 2 else rewrite(part) for place, part in enumerate(apart.split(text))]
            text = joined(parts) if rules.remove_extra_whitespaces else "".join(parts)
        if rules.remove_extra_whitespaces:
            text = (text if apart is not None else SPACES.sub(" ", text)).strip(" ")
        if not text:
            return ""
        text = text.replace(" ", space)
        text = space + text if rules.add_dummy_prefix else text
        # The original takes spaces from the end once they are marked, typed marks and the dummy among them.
        return text.rstrip(space) if rules.remove_extra_whitespaces else text

    return prepare


def joined(parts: Iterable[str]) -> str:
    """Texts and, in every second place, pieces to keep, as one text in which runs of spaces are one space; a piece
    loses those at its beginning alone, behind another."""
    found, spaced = [], True
    for place, part in enumerate(parts):
        part = part if place % 2 else SPACES.sub(" ", part)
        part = part.lstrip(" ") if spaced else part
        spaced = part.endswith(" ") if part else spaced
        found.append(part)
    return "".join(found)
