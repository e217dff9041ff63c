"""Where documents come from: the Python installation, a folder of text, one file. Imports no torch.

`gather` gives documents in one fixed order and reads them anew each time, so that a corpus needs no more memory than
its largest document.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fledge.data.config import PYTHON
from fledge.data.document import Document
from fledge.data.python_source import python_documents
from fledge.data.text_file import Tally, json_lines, read_files, text_files
from fledge.errors import DataError


def gather(source: str, tally: Tally | None = None) -> Iterator[Document]:
    """Every document of a source, ordered by path. Raises DataError if the path is missing.

    A folder: each file that is text, whatever its ending (HTML as it is written); hidden ones are left out. One file
    whose name ends in .jsonl: a document for the `text` of each line.
    """
    tally = tally if tally is not None else Tally()
    if source == PYTHON:
        return (document for document in python_documents(tally) if not is_empty(document, tally))
    path = Path(source)
    if path.is_file() and path.suffix == ".jsonl":
        found = json_lines(path)
    elif path.is_file():
        found = read_files([(path.name, path)], tally)
    elif path.is_dir():
        found = read_files(text_files(path), tally)
    else:
        raise DataError(f"{path}: expected a folder or file of text, found none; check the path (or source=python)")
    return (document for document in found if not is_empty(document, tally))


def is_empty(document: Document, tally: Tally) -> bool:
    if document.text.strip():
        return False
    tally.empty.append(document.path)
    return True
