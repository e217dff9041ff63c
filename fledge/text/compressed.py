"""gzip and Zstandard as streams that end where the file ends or is damaged: what stands before the damage is read, and
`damage` tells the rest. Nothing is unpacked that isn't asked for, so a bomb costs what its reader takes from it."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from fledge.errors import ConfigError

PIECE_BYTES = 32 << 10  # read from the file at once
UNPACKED_BYTES = 1 << 20  # given by gzip at once, at most
ZSTD_PIECE_BYTES = 1 << 10  # a block of 128 KiB may take four bytes: 32 MiB at once, at most
ZSTD_WINDOW_BYTES = 128 << 20  # what `zstd` itself takes without being told to take more


@dataclass(frozen=True)
class Damage:
    """Where a compressed file stops making sense: `byte` counts from 0 in the file itself."""

    byte: int
    reason: str


class Form(NamedTuple):
    """A compressed format: a fresh decoder, and one step of it: (unpacked, what it has not taken in)."""

    name: str
    decoder: Callable[[], Any]
    step: Callable[[Any, memoryview], tuple[bytes, bytes | memoryview]]


class Unpacked(io.RawIOBase):
    """The bytes inside of a compressed file of one or more members. `damage` is None until the end shows otherwise."""

    def __init__(self, file: BinaryIO, form: Form):
        self.file, self.form = file, form
        self.damage: Damage | None = None
        self.decoder: Any = None  # None between members
        self.n_members, self.n_read = 0, 0
        self.left = self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            if not self.advance():
                return 0
        n = min(len(buffer), len(self.ready))
        buffer[:n] = self.ready[:n]
        self.ready = self.ready[n:]
        return n

    def advance(self) -> bool:
        """One step; False at the end or at the damage."""
        if self.damage is not None:
            return False
        if not self.left:
            self.left = memoryview(self.file.read(PIECE_BYTES))
            self.n_read += len(self.left)
            if not self.left:
                if self.decoder is not None or not self.n_members:
                    self.fail("cut off")
                return False
        if self.decoder is None and self.n_members and self.left[0] == 0:
            self.left = memoryview(bytes(self.left).lstrip(b"\0"))  # padding, as tapes have it
            return True
        try:
            self.decoder = self.decoder if self.decoder is not None else self.form.decoder()
            unpacked, left = self.form.step(self.decoder, self.left)
        except Exception as error:  # zstandard is optional, so its error has no name here
            if not isinstance(error, zlib.error) and type(error).__name__ != "ZstdError":
                raise
            self.fail("damaged")
            return False
        self.ready, self.left = memoryview(unpacked), memoryview(left)
        if self.decoder.eof:
            self.decoder = None
            self.n_members += 1
        return True

    def fail(self, how: str) -> None:
        self.damage = Damage(self.n_read - len(self.left), f"{how} {self.form.name}")

    def close(self) -> None:
        self.file.close()
        super().close()


def gzip_step(decoder: Any, data: memoryview) -> tuple[bytes, bytes]:
    unpacked = decoder.decompress(data, UNPACKED_BYTES)
    return unpacked, decoder.unused_data if decoder.eof else decoder.unconsumed_tail


def zstd_step(decoder: Any, data: memoryview) -> tuple[bytes, bytes | memoryview]:
    unpacked = decoder.decompress(data[:ZSTD_PIECE_BYTES])
    rest = data[ZSTD_PIECE_BYTES:]
    return unpacked, decoder.unused_data + bytes(rest) if decoder.eof else rest


def zstd_decoder() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError("a .zst file: expected the package zstandard, found none; pip install fledge[data]") from None
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()


FORMS = {
    ".gz": Form("gzip", lambda: zlib.decompressobj(31), gzip_step),
    ".zst": Form("Zstandard", zstd_decoder, zstd_step),
}


def unpacked(file: BinaryIO, ending: str) -> io.BufferedReader:
    """What a file with this ending (a key of FORMS) holds."""
    return io.BufferedReader(Unpacked(file, FORMS[ending]), 1 << 16)


def damage_of(stream: BinaryIO) -> Damage | None:
    """How a stream that was read to its end ended early; None for a whole one, or one that is not compressed."""
    raw = getattr(stream, "raw", None)
    return raw.damage if isinstance(raw, Unpacked) else None
