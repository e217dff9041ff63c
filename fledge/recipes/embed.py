"""`fledge embed`: the texts of a file as vectors, chunk by chunk, in their order."""

from __future__ import annotations

import gzip
import json as json_text
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fledge import device as devices
from fledge.data.task_config import NAMES
from fledge.engine.encoder import load_vectors
from fledge.errors import ConfigError, DataError
from fledge.log import say
from fledge.model.sentence import SentenceModel
from fledge.recipes.embed_config import EmbedConfig
from fledge.recipes.npy_file import npy_rows

CHUNK_TEXTS = 4096  # so many are in memory, and passes are put together among them
SAY_SECONDS = 10.0


def embed(config: EmbedConfig, json: bool = False) -> dict[str, Any]:
    """Write `config.out`; texts, tokens, how many texts were cut, and seconds. Prints a line of it unless `json`.

    Raises ConfigError for a model that gives no vectors or an `out` that can't be written, DataError for a file."""
    if not config.texts:
        raise ConfigError("texts: expected a file of texts, got none; write fledge embed MODEL FILE")
    if config.out.suffix != ".npy":
        raise ConfigError(f"out: expected a name that ends in .npy, got {config.out.name}")
    texts = read_lines(Path(config.texts), config.column)
    device = devices.pick(config.device, threads=config.threads).device
    sentences = load_vectors(config.model, config.pooling, device)
    n_tokens, n_cut, began, said = 0, 0, time.perf_counter(), time.perf_counter()
    with npy_rows(config.out, sentences.width) as out:
        while chunk := list(islice(texts, CHUNK_TEXTS)):
            ids, cut = rows_of(sentences, [text for text, _ in chunk], config.prompt or None)
            empty = next((place for row, (_, place) in zip(ids, chunk, strict=True) if not row), None)
            if empty is not None:
                raise DataError(f"{empty}: expected a text, got none, and this model puts no token around it; drop it")
            out.add(vectors_of(sentences, ids, config.batch_tokens))
            n_tokens, n_cut = n_tokens + sum(map(len, ids)), n_cut + cut
            if time.perf_counter() - said > SAY_SECONDS:
                said = time.perf_counter()
                say(f"{out.n_rows:,} texts, {out.n_rows / (said - began):.0f} a second")
        if not out.n_rows:
            raise DataError(f"{config.texts}: expected texts, found none; name another file")
        n_rows = out.n_rows
    seconds = time.perf_counter() - began
    result = {
        "model": config.model, "out": str(config.out), "texts": n_rows, "width": sentences.width, "tokens": n_tokens,
        "cut": n_cut, "max_tokens": sentences.config.max_tokens, "seconds": round(seconds, 3),
    }  # fmt: skip
    if not json:
        lost = f", {n_cut:,} of them cut at {sentences.config.max_tokens} tokens" if n_cut else ""
        rate = f"{n_rows / seconds:.0f} texts a second"
        print(f"{config.out}: {n_rows:,} vectors of {sentences.width} numbers{lost}; {rate}")
    return result


def rows_of(sentences: SentenceModel, texts: Sequence[str], prompt: str | None) -> tuple[list[list[int]], int]:
    """Each text's ids as the model reads them, and how many texts lost some."""
    ids = sentences.ids(texts, prompt)
    most, cut = sentences.config.max_tokens, 0
    full = [text for text, row in zip(texts, ids, strict=True) if len(row) == most]
    if full:
        longer = replace(sentences.config, max_tokens=most + 1)
        whole = SentenceModel(sentences.model, sentences.tokenizer, longer, sentences.dense).ids(full, prompt)
        cut = sum(len(row) > most for row in whole)
    return ids, cut


def vectors_of(sentences: SentenceModel, ids: Sequence[list[int]], batch_tokens: int) -> np.ndarray:
    """float32 [N, W] in the order of the rows; rows of like length share a pass."""
    found = np.zeros((len(ids), sentences.width), np.float32)
    for places in passes(ids, batch_tokens):
        found[places] = sentences.vectors([ids[place] for place in places]).float().cpu().numpy()
    return found


def passes(ids: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """The places of rows, by length, so many together that a pass has at most `batch_tokens` tokens (or one row)."""
    batch: list[int] = []
    for place in sorted(range(len(ids)), key=lambda place: len(ids[place])):
        if batch and len(ids[place]) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def read_lines(path: Path, column: str) -> Iterator[tuple[str, str]]:
    """(text, its place) of each line of a file, read as they are asked for. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file of texts, found none; check the path, or write the text to a file")
    rows = path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson"))
    number = 0
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                place = f"{path}, line {number}"
                if not rows:
                    yield line.rstrip("\r\n"), place
                elif line.strip():
                    yield text_of(line, column, place), place
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}, after line {number}: can't be read as UTF-8 ({str(error)[:80]})") from None


def text_of(line: str, column: str, place: str) -> str:
    """The text of a JSON line: a string, or under its key in an object. Raises DataError."""
    try:
        row = json_text.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: expected JSON, got what is none ({str(error)[:80]})") from None
    if isinstance(row, str) and not column:
        return row
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected an object or a string, got {type(row).__name__}")
    names = (column,) if column else NAMES["text"]
    key = next((name for name in names if name in row), None)
    if key is None or not isinstance(row[key], str):
        keys = ", ".join(map(str, row))[:80]
        raise DataError(f"{place}: expected a text as {' or '.join(names)}, got {keys}; set column=…")
    return row[key]
