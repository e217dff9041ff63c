"""The words of a UTF-8 text as 64-bit hashes, from its bytes: eight at a time, so that what is done for each character
is done to single bytes. The words are those of `word_hashes`; the values are not, on which MinHash's choices rest.

A word of up to eight bytes is mixed by a permutation of 64 bits, so that no two of them share a hash; each eight more
are added and mixed in; what is longer than LONGEST is hashed by BLAKE2b.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b

import numpy as np

from fledge.data import word_hashes
from fledge.data.word_hashes import CHARACTER, HALF, LETTER, MULTIPLIER, all_kinds

PIECE_BYTES, GROUP_BYTES = 1 << 17, 1 << 18  # taken at once, about: arrays that fit a cache
LONGEST = 64  # bytes of a word that are taken by eights
MARGIN = bytes(8)  # behind a piece, so that eight bytes can be read from its last one
MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # the first n of eight bytes
FOLDED = bytes(  # ASCII in lower case, 0 where it is of no word; other bytes as they are
    code if code >= 128 else ord(chr(code).lower()) if chr(code).isalnum() or chr(code) == "_" else 0
    for code in range(256)
)
NOTHING = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
CAPITAL, OTHER_LENGTH = 3, 4  # kinds beside LETTER and CHARACTER: lower case is another character, or takes str.lower


def utf8_word_hashes(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The hash of every word of the texts in lower case, in their order, uint64 [n], and the number of each text's
    first word, int64 [texts + 1]."""
    found: list[np.ndarray] = [np.zeros(0, np.uint64)]
    counts = np.zeros(len(texts) + 1, np.int64)
    for group in grouped((number, piece) for number, text in enumerate(texts, 1) for piece in pieces(text)):
        hashes, n_words = hashes_of_group([piece for _, piece in group])
        found.append(hashes)
        for (number, _), n in zip(group, n_words, strict=True):
            counts[number] += n
    return np.concatenate(found), np.cumsum(counts)


def grouped(numbered: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Pieces together as far as they are short."""
    group: list[tuple[int, bytes]] = []
    size = 0
    for number, piece in numbered:
        if group and size + len(piece) > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append((number, piece))
        size += len(piece)
    if group:
        yield group


def hashes_of_group(texts: list[bytes]) -> tuple[np.ndarray, list[int]]:
    """The words of several pieces at once, and how many each has."""
    found = hashes_of_piece(b" ".join(texts))
    if found is None:
        parts = [(hashes_of_piece(text) or hashes_of_piece(in_lower_case(text)) or NOTHING)[0] for text in texts]
        return np.concatenate(parts), [len(part) for part in parts]
    hashes, starts = found
    ends = np.cumsum([len(text) + 1 for text in texts])
    return hashes, np.diff(np.searchsorted(starts, ends), prepend=0).tolist()


def in_lower_case(text: bytes) -> bytes:
    return text.decode("utf-8", "surrogatepass").lower().encode("utf-8", "surrogatepass")


def pieces(text: bytes) -> Iterator[bytes]:
    """The text in pieces that end at a space. From a stretch without any on that `word_hashes` might cut, it is cut as
    there, by characters."""
    start = end = 0
    while len(text) - end > word_hashes.PIECE_CHARACTERS:
        space = text.rfind(b" ", end, end + word_hashes.PIECE_CHARACTERS)
        if space < 0:
            yield text[start:end]
            rest = text[end:].decode("utf-8", "surrogatepass").lower()
            yield from (piece.encode("utf-8", "surrogatepass") for piece in word_hashes.pieces(rest))
            return
        end = space + 1
        if end - start >= PIECE_BYTES:
            yield text[start:end]
            start = end
    yield text[start:]


def hashes_of_piece(text: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """The hash of each word and where it starts; None where only `str.lower` tells the lower case of a character, as it
    takes another number of bytes or hangs on its place."""
    codes, alone = np.frombuffer((b"\0" + text + MARGIN).translate(FOLDED), np.uint8), NOTHING[1]
    if not text.isascii():
        codes = codes.copy()
        found = fold_others(codes)
        if found is None:
            return None
        alone = found
    starts, ends = borders(codes > 0, alone)
    lengths = ends - starts
    eights = np.ndarray((len(codes) - 7,), "<u8", codes, strides=(1,))
    hashes = mix(eights[starts] & MASKS.take(lengths, mode="clip"))
    at, done = np.flatnonzero(lengths > 8), 8
    while len(at) and done < LONGEST:
        more = eights[starts[at] + done] & MASKS.take(lengths[at] - done, mode="clip")
        hashes[at] = mix(hashes[at] + more)
        done += 8
        at = at[lengths[at] > done]
    for number in at.tolist():
        word = codes[starts[number] : ends[number]].tobytes()
        hashes[number] = int.from_bytes(blake2b(word, digest_size=8).digest(), "little")
    return hashes, starts - 1


def borders(in_word: np.ndarray, alone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words start and end (one past their last byte); `alone`: where characters stand that are words of their
    own, of three bytes each."""
    changes = in_word[1:] != in_word[:-1]
    if not len(alone):
        places = np.flatnonzero(changes) + 1
        return places[::2], places[1::2]
    changes[alone - 1] = changes[alone + 2] = True
    return np.flatnonzero(changes & in_word[1:]) + 1, np.flatnonzero(changes & in_word[:-1]) + 1


def fold_others(codes: np.ndarray) -> np.ndarray | None:
    """Put the characters beyond ASCII in lower case, and 0 in place of those that are of no word. Gives where words of
    one character stand; None where the lower case of a character takes `str.lower`."""
    leads = np.flatnonzero(codes >= 0xC0)
    first = codes[leads]
    alone = NOTHING[1]
    for width, least, most, bits in ((2, 0xC0, 0xE0, 0x1F), (3, 0xE0, 0xF0, 0x0F), (4, 0xF0, 0x100, 0x07)):
        at = leads[(first >= least) & (first < most)]
        if not len(at):
            continue
        points = np.bitwise_and(codes[at], bits, dtype=np.uint32)
        for n in range(1, width):
            points = points * np.uint32(64) + np.bitwise_and(codes[at + n], 0x3F, dtype=np.uint32)
        kind_of, capitals, small = tables(int(points.max() >> 16) + 1)
        kinds = kind_of[points]
        if (kinds == OTHER_LENGTH).any():
            return None
        if width == 3:
            alone = at[kinds == CHARACTER]
        out, capital = at[kinds == 0], kinds == CAPITAL
        for n in range(width if len(out) else 0):
            codes[out + n] = 0
        if capital.any():
            write_small(codes, at[capital], small[np.searchsorted(capitals, points[capital])], width, bits)
    return alone


def write_small(codes: np.ndarray, at: np.ndarray, points: np.ndarray, width: int, bits: int) -> None:
    """Put these code points of `width` bytes there."""
    for n in range(width - 1, 0, -1):
        codes[at + n] = points & 0x3F | 0x80
        points = points >> np.uint32(6)
    codes[at] = codes[at] & ~np.uint8(bits) | points


def mix(values: np.ndarray) -> np.ndarray:
    """A permutation of the 64-bit numbers."""
    values = values * MULTIPLIER
    values ^= values >> HALF
    values *= MULTIPLIER
    return values


@cache
def tables(n_planes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each code point of the first planes is, uint8 [n_planes << 16]; the capitals whose small letters take as
    many bytes, and those."""
    points = np.arange(n_planes << 16, dtype="<u4")
    small = points.copy()
    small[[ord("İ"), ord("Σ")]] = 0  # two characters; a letter that depends on its place
    lowered = small.tobytes().decode("utf-32-le", "surrogatepass").lower()
    small = np.frombuffer(lowered.encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = all_kinds(len(points))[small]
    changed = np.flatnonzero(small != points)
    same = widths(small[changed]) == widths(points[changed])
    capital = changed[same & (kinds[changed] == LETTER)]
    kinds[changed[~same]] = OTHER_LENGTH
    kinds[capital] = CAPITAL
    return kinds, capital, small[capital]


def widths(points: np.ndarray) -> np.ndarray:
    """The bytes of each character in UTF-8."""
    return 1 + (points >= 0x80).astype(np.uint8) + (points >= 0x800) + (points >= 0x10000)
