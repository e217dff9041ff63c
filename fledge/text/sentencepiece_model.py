"""`PieceModel`: SentencePiece's `.model`, a protocol-buffer message, read and written without the library.

Only what decides ids and text is kept: pieces with score and type, the kind of model, the ids of control pieces, byte
fallback, and how text is normalised. Fields of the message that are not known here are skipped, as the wire format
allows.
Source: google/sentencepiece, src/sentencepiece_model.proto; protobuf.dev, "Encoding".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fledge.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
SPACE_MARK = "\u2581"  # a space is written so

MAX_BYTES = 64 << 20  # the largest in wide use has 4.3 million bytes
MAX_PIECES = 1 << 20  # and other parts of the message
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """One entry: its text (spaces as U+2581), log-probability or merge score, and type."""

    text: str
    score: float = 0.0
    type: int = NORMAL


@dataclass(frozen=True)
class PieceModel:
    """A `.model`: `pieces[id]`, `kind` "unigram" or "bpe", and the settings of trainer and normalizer."""

    pieces: tuple[Piece, ...]
    kind: str = "unigram"
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    unk_surface: str = " \u2047 "
    charsmap: bytes = field(default=b"", repr=False)
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    whitespace_is_suffix: bool = False


def read_model(path: str | Path) -> PieceModel:
    """The PieceModel of a `.model` file. Raises TokenizerError for a damaged one or a kind that is not a subword
    model."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise TokenizerError(f"{path}: expected at most {MAX_BYTES} bytes, got {size}; not a usable tokenizer")
        return parse_model(path.read_bytes(), str(path))
    except OSError as error:
        raise TokenizerError(f"{path}: can't be read ({error.strerror or type(error).__name__})") from None


def parse_model(data: bytes, at: str = "tokenizer.model") -> PieceModel:
    """The PieceModel of a message. Raises TokenizerError."""
    pieces: list[Piece] = []
    trainer, normalizer = b"", b""
    parts = list(islice(fields_of(data, at), MAX_PIECES + 1))
    if len(parts) > MAX_PIECES:
        raise TokenizerError(f"{at}: expected at most {MAX_PIECES} pieces, got more; not a usable tokenizer")
    for number, value in parts:
        if number == 1 and isinstance(value, bytes):
            pieces.append(parse_piece(value, f"{at}: piece {len(pieces)}"))
        elif number == 2 and isinstance(value, bytes):
            trainer += value  # a message split in two is the two merged
        elif number == 3 and isinstance(value, bytes):
            normalizer += value
    if not pieces:
        raise TokenizerError(f"{at}: expected a SentencePiece model, found no pieces")
    told, rules = dict(fields_of(trainer, at)), dict(fields_of(normalizer, at))
    kind = MODELS.get(whole(told, 3, 1), "unknown")
    if kind not in ("unigram", "bpe"):
        raise TokenizerError(f"{at}: model_type: expected unigram or bpe, got {kind}; train one of these")
    charsmap, surface = rules.get(2, b""), told.get(44, PieceModel.unk_surface.encode())
    return PieceModel(
        pieces=tuple(pieces),
        kind=kind,
        byte_fallback=bool(whole(told, 35, 0)),
        unk_id=whole(told, 40, 0),
        bos_id=control_id(whole(told, 41, 1), pieces),
        eos_id=control_id(whole(told, 42, 2), pieces),
        pad_id=control_id(whole(told, 43, -1), pieces),
        unk_surface=surface.decode("utf-8", "replace") if isinstance(surface, bytes) else PieceModel.unk_surface,
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        add_dummy_prefix=bool(whole(rules, 3, 1)),
        remove_extra_whitespaces=bool(whole(rules, 4, 1)),
        escape_whitespaces=bool(whole(rules, 5, 1)),
        whitespace_is_suffix=bool(whole(told, 24, 0)),
    )


def control_id(number: int, pieces: list[Piece]) -> int:
    """The id that the settings name, or -1 if its piece is text: the original then has no such token either."""
    return number if 0 <= number < len(pieces) and pieces[number].type in (CONTROL, UNKNOWN) else -1


def parse_piece(data: bytes, at: str) -> Piece:
    found = dict(fields_of(data, at))
    text, score, kind = found.get(1, b""), found.get(2, 0), whole(found, 3, NORMAL)
    value = struct.unpack("<f", struct.pack("<I", score))[0] if isinstance(score, int) else math.nan
    if not isinstance(text, bytes) or not text or not math.isfinite(value) or not NORMAL <= kind <= BYTE:
        raise TokenizerError(f"{at}: expected a text, a finite score and a type of 1..6; the file is damaged")
    try:
        return Piece(text.decode("utf-8"), value, kind)
    except UnicodeDecodeError:
        raise TokenizerError(f"{at}: expected UTF-8, got {text[:16]!r}") from None


def whole(fields: dict[int, int | bytes], number: int, default: int) -> int:
    """A whole number of a message, read as a signed 64-bit one; `default` where it is absent or of another type."""
    value = fields.get(number, default)
    if not isinstance(value, int):
        return default
    return value - (1 << 64) if value >= 1 << 63 else value


def fields_of(data: bytes, at: str) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message: numbers as unsigned integers, everything else as bytes."""
    place, end = 0, len(data)
    while place < end:
        key, place = varint(data, place, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, place = varint(data, place, at)
            yield number, value
            continue
        if wire == LENGTH:
            length, place = varint(data, place, at)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise TokenizerError(f"{at}, byte {place}: wire type {wire}: not a SentencePiece model, or a damaged one")
        if not number or length > end - place:
            raise TokenizerError(f"{at}, byte {place}: expected {length} bytes, got {end - place}; the file is damaged")
        body = data[place : place + length]
        place += length
        yield number, body if wire == LENGTH else int.from_bytes(body, "little")


def varint(data: bytes, place: int, at: str) -> tuple[int, int]:
    if place < len(data) and data[place] < 0x80:  # nearly all of them
        return data[place], place + 1
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, place
    raise TokenizerError(f"{at}, byte {place}: expected a number, got none that ends; the file is damaged")


def write_model(model: PieceModel) -> bytes:
    """The message of a PieceModel, as `SentencePieceProcessor(model_proto=...)` reads it."""
    parts = []
    for piece in model.pieces:
        body = text_field(1, piece.text.encode()) + bytes([2 << 3 | FIXED32]) + struct.pack("<f", piece.score)
        parts.append(text_field(1, body + (b"" if piece.type == NORMAL else number_field(3, piece.type))))
    kinds = {name: number for number, name in MODELS.items()}
    trainer = number_field(3, kinds[model.kind]) + number_field(4, len(model.pieces))
    trainer += number_field(24, int(model.whitespace_is_suffix)) + number_field(35, int(model.byte_fallback))
    ids = ((40, model.unk_id, 45), (41, model.bos_id, 46), (42, model.eos_id, 47), (43, model.pad_id, 48))
    for number, value, name in ids:
        trainer += number_field(number, value)
        if 0 <= value < len(model.pieces):
            trainer += text_field(name, model.pieces[value].text.encode())
    trainer += text_field(44, model.unk_surface.encode())
    rules = text_field(1, b"user_defined" if model.charsmap else b"identity") + text_field(2, model.charsmap)
    settings = (model.add_dummy_prefix, model.remove_extra_whitespaces, model.escape_whitespaces)
    rules += b"".join(number_field(number, int(on)) for number, on in enumerate(settings, 3))
    return b"".join((*parts, text_field(2, trainer), text_field(3, rules)))


def number_field(number: int, value: int) -> bytes:
    return as_varint(number << 3 | VARINT) + as_varint(value & (1 << 64) - 1)


def text_field(number: int, value: bytes) -> bytes:
    return as_varint(number << 3 | LENGTH) + as_varint(len(value)) + value


def as_varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
