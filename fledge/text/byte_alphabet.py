"""GPT-2's alphabet: each of the 256 bytes as one printable character, so that byte-level BPE works on text.

Source: Radford et al. 2019, `bytes_to_unicode`.
"""

from __future__ import annotations

PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))  # these stand for themselves
OTHERS = tuple(byte for byte in range(256) if byte not in PRINTABLE)  # these are shifted beyond Latin-1, in order

CHARACTER_OF: dict[int, str] = {
    **{byte: chr(byte) for byte in PRINTABLE},
    **{byte: chr(256 + place) for place, byte in enumerate(OTHERS)},
}
BYTE_OF: dict[str, int] = {character: byte for byte, character in CHARACTER_OF.items()}


def to_bytes(token: str) -> bytes | None:
    """The bytes a token of the alphabet stands for, or None if it has a character outside of it."""
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:
        return None
