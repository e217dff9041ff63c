"""Write beside, then rename: a file or folder is the old one or the new one, never half of either. Imports no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A scratch path that takes the place of `path` when the block ends well and vanishes when it doesn't. An OSError
    that names no file, as that of a full disk, gets this one's name."""
    scratch = scratch_of(path)
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        error.filename = error.filename if error.filename is not None else str(path)
        raise
    finally:
        remove(scratch)


def scratch_of(path: Path) -> Path:
    """Where this process writes what will take the place of `path`."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def clean(folder: Path, names: Iterable[str]) -> None:
    """Remove the scratch files of `names` that a killed run left in `folder`; those of a run that lives are its own."""
    for name in names:
        for path in folder.glob(f".{name}.tmp-*"):
            if not is_alive(path.name.rpartition("-")[2]):
                remove(path)


def is_alive(pid: str) -> bool:
    """Whether a process of that number runs here, other than this one."""
    if not pid.isdecimal() or int(pid) in (0, os.getpid()):
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True  # somebody else's
    except (ProcessLookupError, OverflowError):
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; neither there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
