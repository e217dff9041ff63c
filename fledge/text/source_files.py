"""The files of a source: one file, a folder, or what a URL names (fsspec), under names that name their documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from fledge.errors import ConfigError, DataError
from fledge.text.compressed import FORMS, unpacked

BUFFER_BYTES = 1 << 18  # a line is put together from few pieces
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


@dataclass(frozen=True)
class SourceFile:
    """`name` is relative to the source and without the ending of a compressed form; `path` is what a user would open;
    `pack` is that ending (".gz", ".zst") or "". `opener` opens the file as it is."""

    name: str
    path: str
    pack: str
    opener: Callable[[], BinaryIO]

    @property
    def kind(self) -> str:
        """The ending that tells what the file holds, in small letters: ".jsonl" of a.jsonl.gz."""
        return Path(self.name).suffix.lower()

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """What the file holds, unpacked as it is read. OSErrors are DataErrors with its name."""
        try:
            with self.opener() as file:
                yield unpacked(file, self.pack) if self.pack else file
        except OSError as error:
            reason = error.strerror or str(error)[:120] or type(error).__name__
            raise DataError(f"{self.path}: can't be read ({reason}); mend or move it") from None


def source_files(source: str | Path) -> list[SourceFile]:
    """The files of a source, ordered by name; hidden ones of a folder are left out. Raises DataError if there is none,
    ConfigError if the package for its URL is missing."""
    if is_url(source):
        return url_files(str(source))
    path = Path(source)
    if path.is_file():
        return [local_file(path.name, path)]
    if path.is_dir():
        files = visible_files(path)
        marks = table_marks(name for name, _ in files)
        return [local_file(name, file) for name, file in files if name not in marks]
    raise DataError(f"{path}: expected a folder or file of text, found none; check the path")


def is_url(source: str | Path) -> bool:
    return URL.match(str(source)) is not None


def local_file(name: str, path: Path) -> SourceFile:
    return source_file(name, str(path), lambda: open(path, "rb", BUFFER_BYTES))


def source_file(name: str, path: str, opener: Callable[[], BinaryIO]) -> SourceFile:
    pack = Path(name).suffix.lower()
    pack = pack if pack in FORMS else ""
    return SourceFile(printable(name[: len(name) - len(pack)]), printable(path), pack, opener)


def visible_files(folder: Path) -> list[tuple[str, Path]]:
    """(relative path, path) of the files below a folder that are not hidden, ordered by relative path. Links are
    followed, but for those to a folder that they stand in."""
    rows: list[tuple[str, Path]] = []
    pending: list[tuple[Path, tuple[Path, ...]]] = [(folder, (folder.resolve(),))]
    while pending:
        place, above = pending.pop()
        for path in place.iterdir():
            if not is_visible(path.name):
                continue
            if path.is_file():
                rows.append((printable(path.relative_to(folder).as_posix()), path))
            elif path.is_dir() and (own := path.resolve()) not in above:
                pending.append((path, (*above, own)))
    return sorted(rows)


def table_marks(names: Iterable[str]) -> set[str]:
    """What stands beside the rows in a folder that Hugging Face's `datasets` saved, and is no text."""
    known = set(names)
    tops = {name.removesuffix("state.json") for name in known if name.endswith("state.json")}
    tops = {top for top in tops if f"{top}dataset_info.json" in known}
    marks = {f"{top}{name}" for top in tops for name in ("state.json", "dataset_info.json")}
    marks |= {name for name in known if name.endswith(".arrow") and "/cache-" in f"/{name}"}
    roots = {top.rstrip("/").rpartition("/")[0] for top in tops}
    return marks | {f"{root}/dataset_dict.json".lstrip("/") for root in roots}


def is_visible(relative: str) -> bool:
    return not any(part.startswith(".") for part in relative.split("/"))


def url_files(url: str) -> list[SourceFile]:
    """The files that a URL names: an object, or all below a folder or bucket."""
    filesystem, root = filesystem_of(url)
    try:
        if filesystem.isfile(root):
            paths = [(root.rstrip("/").rpartition("/")[2], root)]
        else:
            inside = len(root.rstrip("/")) + 1
            paths = sorted((path[inside:], path) for path in filesystem.find(root))
    except OSError as error:
        raise DataError(f"{url}: can't be read ({str(error)[:120] or type(error).__name__}); check it") from None
    if not paths:
        raise DataError(f"{url}: expected a file or a folder of text, found none; check the address")
    marks = table_marks(name for name, _ in paths)
    return [
        source_file(name, filesystem.unstrip_protocol(path), partial(filesystem.open, path, "rb"))
        for name, path in paths
        if is_visible(name) and name not in marks
    ]


def filesystem_of(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise ConfigError(f"{url}: expected the package fsspec, found none; pip install fledge[data]") from None
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: no package for such an address ({str(error)[:120]}); install it") from None
    return filesystem, str(root)


def printable(path: str) -> str:
    """A path as valid Unicode: bytes that were not UTF-8 are spelled out."""
    return path.encode("utf-8", "backslashreplace").decode()
