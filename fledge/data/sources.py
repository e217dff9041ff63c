"""Where documents come from: the Python installation, a folder of text, one file. Imports no torch.

`gather` gives documents in one fixed order and reads them anew each time, so that a corpus needs no more memory than
its largest document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fledge.data.config import PYTHON
from fledge.data.document import Document
from fledge.data.python_source import python_documents
from fledge.errors import DataError
from fledge.text.documents import CORPUS, Tally, read_text, with_text


def gather(source: str, tally: Tally | None = None) -> Iterator[Document]:
    """Every document of a source, ordered by path. Raises DataError if the path is missing or is a corpus already.

    A folder: each file that is text, whatever its ending (HTML as it is written); hidden ones are left out. One file
    whose name ends in .jsonl: a document for the `text` of each line.
    """
    tally = tally if tally is not None else Tally()
    if source == PYTHON:
        return with_text(python_documents(tally), tally)
    path = Path(source)
    if (path / CORPUS).is_file():
        raise DataError(
            f"{path}: expected text, got a corpus without shards, part of which is held out; to train on it, run "
            f"fledge data build with --out {path}, its source and --tokenizer"
        )
    if not path.exists():
        raise DataError(f"{path}: expected a folder or file of text, found none; check the path (or source=python)")
    return numbered(read_text(path, tally))


def numbered(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents, each under a path of its own: one that comes again (JSON lines) becomes `path#2` and so on."""
    times: Counter[str] = Counter()
    for document in documents:
        name = document.path
        while times[name]:
            times[document.path] += 1
            name = f"{document.path}#{times[document.path]}"
        times[name] += 1
        yield Document(name, document.text)
