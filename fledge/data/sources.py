"""Where documents come from: the Python installation, folders, files, addresses; one or several. Imports no torch.

`gather` gives documents in one fixed order and reads them anew each time, so that a corpus needs no more memory than
its largest document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fledge.data.config import PYTHON
from fledge.data.document import Document
from fledge.data.python_source import python_documents
from fledge.errors import DataError
from fledge.text.documents import CORPUS, DEFAULT, ReadingConfig, Tally, read_source, with_text
from fledge.text.source_files import is_url


def gather(
    sources: str | Sequence[str], tally: Tally | None = None, reading: ReadingConfig = DEFAULT
) -> Iterator[Document]:
    """Every document of a source, or of several one after the other, each under a path of its own. Raises DataError if
    one is missing or is a corpus already, and where too much of one is bad (`read_source`)."""
    return numbered(several(checked(sources), tally if tally is not None else Tally(), reading))


def checked(sources: str | Sequence[str]) -> tuple[str, ...]:
    """The sources, one or several. Raises DataError for one that is missing or is a corpus already."""
    named = (sources,) if isinstance(sources, str) else tuple(sources)
    for source in named:
        check_source(source)
    return named


def check_source(source: str) -> None:
    """Raises DataError for a source that isn't there or is no text to gather from."""
    path = Path(source)
    if source == PYTHON or is_url(source):
        return
    if (path / CORPUS).is_file():
        raise DataError(
            f"{path}: expected text, got a corpus without shards, part of which is held out; to train on it, run "
            f"fledge data build with --out {path}, its source and --tokenizer"
        )
    if not path.exists():
        raise DataError(f"{path}: expected a folder or file of text, found none; check the path (or source=python)")


def several(sources: tuple[str, ...], tally: Tally, reading: ReadingConfig) -> Iterator[Document]:
    for number, source in enumerate(sources):
        python = source == PYTHON
        found = with_text(python_documents(tally), tally) if python else read_source(source, tally, reading)
        for document in found:
            yield Document.of(document.path, document.text, document.utf8, number) if number else document


def numbered(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents, each under a path of its own: one that comes again (JSON lines) becomes `path#2` and so on."""
    times: Counter[str] = Counter()
    for document in documents:
        name = document.path
        while times[name]:
            times[document.path] += 1
            name = f"{document.path}#{times[document.path]}"
        times[name] += 1
        same = name == document.path
        yield document if same else Document.of(name, document.text, document.utf8, document.source)
