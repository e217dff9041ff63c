"""A shard's tokens on disk, read by position. Imports no torch.

The file is not mapped: reading a page of a map that another process has cut off kills this one (SIGBUS), and no handler
can turn that into an error. A positional read says how many bytes it got, and costs no more.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np

from fledge.errors import DataError

REMEDY = "run `fledge data build` for this folder again, then the same command"


class TokenFile:
    """`n` ids of a token type in a file, as a sequence that is sliced: `tokens[a:b]` reads these ids into an array.

    The file is opened once, so one that takes its name later (a new build) changes nothing here. Raises DataError where
    the file got shorter, can't be read, or holds an id that is not below `vocab_size`.
    """

    def __init__(self, path: Path, dtype: str, n: int, vocab_size: int):
        self.path, self.n, self.vocab_size = path, n, vocab_size
        self.dtype = np.dtype(dtype).newbyteorder("<")
        try:
            self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self.unreadable(error) from None
        weakref.finalize(self, os.close, self.handle)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, step = part.indices(self.n)
        assert step == 1, "tokens are read in one piece"
        return self.rows([start], max(0, stop - start))[0]

    def rows(self, starts: list[int], n: int) -> np.ndarray:
        """The `n` ids from each of `starts` on: [len(starts), n], of the file's type."""
        ids, width = np.empty((len(starts), n), self.dtype), self.dtype.itemsize
        view, row_bytes = ids.reshape(-1).view(np.uint8).data, n * width
        for number, start in enumerate(starts):
            row = view[number * row_bytes : (number + 1) * row_bytes]
            try:
                done = os.preadv(self.handle, (row,), start * width)
            except OSError as error:
                raise self.unreadable(error) from None
            if done < row_bytes:
                self.read_on(row, done, start * width)
        if ids.size and int(ids.max()) >= self.vocab_size:
            wrong = f"expected ids below {self.vocab_size}, got {ids.max()}"
            raise DataError(f"{self.path}: {wrong}; the file was written over: {REMEDY}")
        return ids

    def read_on(self, row: memoryview, done: int, offset: int) -> None:
        """Read what a read that gave fewer bytes than it was asked for left out."""
        while done < len(row):
            try:
                got = os.preadv(self.handle, (row[done:],), offset + done)
            except OSError as error:
                raise self.unreadable(error) from None
            if not got:
                raise DataError(
                    f"{self.path}: expected {self.n * self.dtype.itemsize} bytes, got {os.fstat(self.handle).st_size}; "
                    f"the file was cut while it was in use: {REMEDY}"
                )
            done += got

    def unreadable(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: can't be read ({error.strerror}); {REMEDY}")
