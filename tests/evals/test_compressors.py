"""Compressed sizes are those of the files that gzip -9 and xz -9 write."""

from __future__ import annotations

import gzip
import lzma
import zlib

import pytest

from fledge.evals.compressors import COMPRESSORS, gzip_bits, xz_bits

TEXTS = ["", "a", "Grüße 😀 " * 300, "".join(chr(32 + n * n % 90) for n in range(20_000))]
GZIP_FRAME = 18  # RFC 1952: ten bytes before the deflate stream, eight after it


@pytest.mark.parametrize("text", TEXTS, ids=len)
def test_gzip_is_a_deflate_stream_of_level_9_and_its_frame(text):
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    assert gzip_bits(text) == 8 * (len(stream.compress(text.encode()) + stream.flush()) + GZIP_FRAME)


@pytest.mark.parametrize("text", TEXTS, ids=len)
def test_xz_is_lzma2_of_preset_9_with_crc64(text):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    packer = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=filters)
    assert xz_bits(text) == 8 * len(packer.compress(text.encode()) + packer.flush())


def test_a_lower_level_is_larger():
    text = TEXTS[3] + "".join(reversed(TEXTS[3])) + TEXTS[2]
    assert gzip_bits(text) < 8 * len(gzip.compress(text.encode(), 1))
    assert COMPRESSORS.keys() == {"gzip", "xz"}
