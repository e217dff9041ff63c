"""The corpus that every Python installation carries: help topics (the language reference) and the standard library.

Read at run time from the interpreter that runs; nothing of it is kept in this project. Documents are
`topics/NAME.txt` and `sources/RELATIVE/PATH.py`. Left out: tests, installed packages, files that differ from machine
to machine, and generated tables, which are not prose and would swamp it.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from fledge.data.document import Document
from fledge.text.documents import Tally, read_file
from fledge.text.source_files import local_file

LEFT_OUT_FOLDERS = frozenset(
    ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "_bundled")
)
LEFT_OUT_NAMES = ("_sysconfigdata", "sitecustomize", "usercustomize")  # made for or by one machine
TABLES = ("decoding_table", "decoding_map")  # generated character maps in encodings/


def python_documents(tally: Tally) -> Iterator[Document]:
    """Help topics, then sources, each ordered by path."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(f"topics/{name}.txt", topics[name])
    for relative, path in source_files(Path(sysconfig.get_paths()["stdlib"])):
        text = read_file(local_file(f"sources/{relative}", path), tally)
        if text is not None and not (relative.startswith("encodings/") and any(word in text for word in TABLES)):
            yield Document(f"sources/{relative}", text)


def source_files(folder: Path) -> list[tuple[str, Path]]:
    """(relative path, path) of the standard library's modules, ordered by relative path."""
    rows = []
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if LEFT_OUT_FOLDERS.intersection(parts) or parts[0].startswith("config-"):
            continue
        if path.name.startswith(LEFT_OUT_NAMES) or not path.is_file():
            continue
        rows.append(("/".join(parts), path))
    return sorted(rows)
