"""What general compressors need for the same documents: the figure that a language model has to beat. Imports no torch.

Each document is compressed alone, as the model reads it alone; headers and checksums count, as in the files that
`gzip -9` and `xz -9` write.
"""

from __future__ import annotations

import gzip
import lzma


def gzip_bits(text: str) -> int:
    """Bits of the text's UTF-8 bytes under `gzip -9` (no file name in the header)."""
    return 8 * len(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def xz_bits(text: str) -> int:
    """Bits of the text's UTF-8 bytes under `xz -9`."""
    return 8 * len(lzma.compress(text.encode(), preset=9))


COMPRESSORS = {"gzip": gzip_bits, "xz": xz_bits}
