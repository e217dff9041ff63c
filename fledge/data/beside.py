"""Write beside, then rename: a file or folder is the old one or the new one, never half of either. Imports no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A scratch path that takes the place of `path` when the block ends well and vanishes when it doesn't."""
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        remove(scratch)


def clean(folder: Path, names: Iterable[str]) -> None:
    """Remove the scratch files of `names` that a killed run left in `folder`."""
    for name in names:
        for path in folder.glob(f".{name}.tmp-*"):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; neither there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
