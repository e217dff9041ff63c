"""Files of rows: JSON lines, Parquet and Arrow. A row is a document or a bad row; one at a time is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from fledge.errors import ConfigError
from fledge.text.bad_rows import BadRow, excerpt
from fledge.text.compressed import damage_of
from fledge.text.config import ReadingConfig
from fledge.text.document import Document
from fledge.text.source_files import SourceFile, printable

SKIPPED_PIECE = 1 << 20
MOST_SKIPPED = 16  # times the largest document: a longer line ends the reading of its file
FEW_ROWS = 64  # of a column in memory
BOMB_RATIO, BOMB_BYTES = 1000, 256 << 20
ARROW_FILE = b"ARROW1"


def json_lines(
    file: SourceFile, stream: BinaryIO, reading: ReadingConfig, split: str = "all"
) -> Iterator[Document | BadRow]:
    """A document for each line, under its `path` or its number. Of lines that name their split, those of `split`."""
    number, stem = 0, str(PurePosixPath(file.name).with_suffix(""))
    while line := stream.readline(reading.max_document_bytes + 1):
        number += 1
        if damage_of(stream) is not None and not line.endswith(b"\n"):
            return  # its end is lost; the damage itself is told by who opened the file
        if len(line) > reading.max_document_bytes:
            more = MOST_SKIPPED * reading.max_document_bytes
            ended = skip_line(stream, more)
            rest = "" if ended else f"; it has no end within {more} more, and the rest of the file is left out"
            detail = f"expected at most {reading.max_document_bytes} bytes{rest}"
            yield BadRow(file.path, "line", number, "too large", detail, excerpt(line))
            if not ended:
                return
            continue
        if line.isspace():
            continue
        row, reason, detail = parsed(line)
        if not reason and split != "all" and isinstance(row, dict) and row.get("split", split) != split:
            continue
        text, utf8 = "", None
        if not reason:
            text, utf8, reason, detail = text_of(row, reading.text_field)
        if reason:
            yield BadRow(file.path, "line", number, reason, detail, excerpt(line))
        else:
            yield Document.of(row_name(row, stem, number), text, utf8)


def skip_line(stream: BinaryIO, most: int) -> bool:
    """Read on to the line's end; False where it doesn't come within `most` bytes."""
    done = 0
    while done < most:
        piece = stream.readline(SKIPPED_PIECE)
        if not piece or piece.endswith(b"\n"):
            return True
        done += len(piece)
    return False


def parsed(line: bytes) -> tuple[Any, str, str]:
    """(row, "", "") of a JSON line, or (None, reason, detail)."""
    try:
        return json.loads(line.decode("utf-8-sig")), "", ""
    except UnicodeDecodeError as error:
        return None, "not UTF-8", f"expected UTF-8, got another byte at {error.start}; convert the file"
    except (ValueError, RecursionError):
        return None, "not JSON", "not JSON; the file is damaged or not JSON lines"


def text_of(row: Any, field: str) -> tuple[str, bytes | None, str, str]:
    """(text, the text in UTF-8, "", "") of a row, or ("", None, reason, detail)."""
    value = value_at(row, field)
    if not isinstance(value, str):
        there = value is not None or isinstance(row, dict) and field in row
        keys = f"the keys {', '.join(map(str, row))!s:.80}" if isinstance(row, dict) else type(row).__name__
        found = f"{type(value).__name__} there" if there else keys
        return "", None, f"no text under {field}", f"expected an object with a text under `{field}`, got {found}"
    try:
        return value, value.encode(), "", ""
    except UnicodeEncodeError as error:
        where = f"got a lone surrogate at character {error.start}; replace it with U+FFFD"
        return "", None, "lone surrogate", f"expected Unicode, {where}"


def value_at(row: Any, field: str) -> Any:
    """The value under a dotted name, None where there is none; a key that has the dots itself comes first."""
    if isinstance(row, dict) and field in row:
        return row[field]
    for part in field.split("."):
        if isinstance(row, dict):
            row = row.get(part)
        elif isinstance(row, list) and part.isdecimal() and len(part) < 10 and int(part) < len(row):
            row = row[int(part)]
        else:
            return None
    return row


def row_name(row: Any, stem: str, number: int) -> str:
    name = row.get("path") if isinstance(row, dict) else None
    return printable(name if isinstance(name, str) and name else f"{stem}:{number}")


def table_rows(file: SourceFile, stream: BinaryIO, reading: ReadingConfig) -> Iterator[Document | BadRow]:
    """A document for each row of a Parquet or Arrow file, under its number. Raises ConfigError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{file.path}: expected the package pyarrow, found none; pip install fledge[data]") from None
    number = 0
    try:
        batches = parquet_batches if file.kind == ".parquet" else arrow_batches
        for name, column in batches(stream, reading.text_field):
            for scalar in column:
                number += 1
                yield table_row(file, name, scalar, number, reading)
    except (pyarrow.ArrowException, ValueError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the file's
        detail = f"{str(error).splitlines()[0][:160] if str(error) else type(error).__name__}; the rest is left out"
        yield BadRow(file.path, "row", number + 1, f"damaged {file.kind[1:]}", detail)


def column_name(names: list[str], field: str) -> str:
    """The column that holds a dotted field; one that has the dots itself comes first. Raises ValueError."""
    name = field if field in names else field.partition(".")[0]
    if name not in names:
        raise ValueError(f"expected a column {name}, got {', '.join(names)!s:.80}; set text_field")
    return name


def parquet_batches(stream: BinaryIO, field: str) -> Iterator[tuple[str, Any]]:
    """A column's name and pieces. Repeated texts stay one text in memory. Raises ValueError for a bomb."""
    from pyarrow import parquet, types

    found = parquet.ParquetFile(stream)
    name = column_name(found.schema_arrow.names, field)
    for group in (found.metadata.row_group(number) for number in range(found.metadata.num_row_groups)):
        for chunk in (group.column(number) for number in range(group.num_columns)):
            packed, whole = chunk.total_compressed_size, chunk.total_uncompressed_size
            if f"{chunk.path_in_schema}.".startswith(f"{name}.") and whole > max(BOMB_BYTES, BOMB_RATIO * packed):
                raise ValueError(f"{packed} bytes would become {whole}")
    if types.is_string(found.schema_arrow.field(name).type):
        found = parquet.ParquetFile(stream, read_dictionary=[name])
    for batch in found.iter_batches(batch_size=FEW_ROWS, columns=[name]):
        yield name, batch.column(name)


def arrow_batches(stream: BinaryIO, field: str) -> Iterator[tuple[str, Any]]:
    """The same of either form of Arrow: the stream, as `datasets` writes it, and the file, which begins with its
    name."""
    from pyarrow import ipc

    begins = stream.read(len(ARROW_FILE))
    stream.seek(0)
    if begins == ARROW_FILE:
        whole = ipc.open_file(stream)
        schema, batches = whole.schema, map(whole.get_batch, range(whole.num_record_batches))
    else:
        reader = ipc.open_stream(stream)
        schema, batches = reader.schema, iter(reader)
    name = column_name(schema.names, field)
    for batch in batches:
        yield name, batch.column(name)


def table_row(file: SourceFile, name: str, scalar: Any, number: int, reading: ReadingConfig) -> Document | BadRow:
    inner = reading.text_field[len(name) + 1 :]
    try:
        value = scalar.as_py()
        row = {name: value} if not inner or not isinstance(value, dict | list) else value
        text, utf8, reason, detail = text_of(row, inner if row is value else name)
    except UnicodeDecodeError as error:
        text, utf8, reason, detail = "", None, "not UTF-8", f"expected UTF-8, got another byte at {error.start}"
    if reason:
        return BadRow(file.path, "row", number, reason, detail)
    document = Document.of(f"{PurePosixPath(file.name).with_suffix('')}:{number}", text, utf8)
    if document.n_bytes > reading.max_document_bytes:
        detail = f"expected at most {reading.max_document_bytes} bytes, got {document.n_bytes}"
        return BadRow(file.path, "row", number, "too large", detail, excerpt(text))
    return document
