"""A NumPy file of float32 rows that is written as they come: their number is known at the end, and never all in memory.

Source of the format: NumPy Enhancement Proposal 1, version 1.0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fledge.errors import ConfigError
from fledge.lineage import fsync_folder

HEADER_BYTES = 128  # more than the longest header that a shape can have here
MAGIC = b"\x93NUMPY\x01\x00"


class NpyRows:
    """An open file; `add` appends rows of `width` numbers."""

    def __init__(self, file: BinaryIO, width: int):
        self.file, self.width, self.n_rows = file, width, 0
        file.write(header(0, width))

    def add(self, rows: np.ndarray) -> None:
        """float32 [n, width]."""
        assert rows.ndim == 2 and rows.shape[1] == self.width, rows.shape
        self.file.write(np.ascontiguousarray(rows, "<f4").tobytes())
        self.n_rows += len(rows)


def header(n_rows: int, width: int) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {width}), }}"
    n_text = HEADER_BYTES - len(MAGIC) - 2
    return MAGIC + n_text.to_bytes(2, "little") + text.ljust(n_text - 1).encode() + b"\n"


@contextmanager
def npy_rows(path: Path, width: int) -> Iterator[NpyRows]:
    """Rows that are at `path` when the block has ended; if it fails, nothing there has changed. Raises ConfigError."""
    scratch = path.with_name(f".new-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "wb") as file:
            rows = NpyRows(file, width)
            yield rows
            file.seek(0)
            file.write(header(rows.n_rows, width))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        fsync_folder(path.absolute().parent)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror}); choose another place with out=…") from None
    finally:
        with suppress(OSError):
            scratch.unlink()
