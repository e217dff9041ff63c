"""`data stats`: how much text a folder or a source holds, in what pieces, and what a tokenizer makes of it. Imports no
torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.config import PYTHON, StatsConfig
from fledge.data.corpus import CORPUS, Record, read_corpus, read_records
from fledge.data.data_card import write_data_card
from fledge.data.scripts import Scripts
from fledge.data.shards import KIND, Dataset, Shard, open_shards
from fledge.data.sources import gather
from fledge.errors import DataError
from fledge.lineage import read_card
from fledge.text.documents import Tally
from fledge.text.source_files import is_url
from fledge.text.tokenizer import Tokenizer, byte_level

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
PIECE_TOKENS = 1 << 22
SHOWN_UNUSED = 20


@dataclass
class Amount:
    """How much of something there is; lengths are kept for their quantiles, 8 bytes each."""

    bytes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {"documents": len(self.bytes), "bytes": sum(self.bytes)}
        if self.tokens:
            n_tokens = sum(self.tokens)
            found |= {"tokens": n_tokens, "bytes_per_token": round(found["bytes"] / max(1, n_tokens), 4)}
        return found


def stats(config: StatsConfig, json: bool = False) -> dict[str, Any]:
    """Counts by split and by source, quantiles of document lengths, scripts, the tokens that are met most and never. A
    table for people unless `json`; the folder's datacard.md gets it too, unless `card` is off."""
    card = card_of(config.path)
    if card is None:
        result = of_source(config)
    else:
        dataset = open_shards(config.path) if card["kind"] == KIND else None
        result = of_folder(config, card, dataset)
        if config.card:
            write_data_card(Path(config.path), card, table(result, markdown=True))
    if not json:
        print(table(result))
    return result


def card_of(path: str) -> dict[str, Any] | None:
    """The card of a folder written by `data build`; None for anything else."""
    if path == PYTHON or is_url(path) or not (Path(path) / CORPUS).is_file():
        return None
    return read_card(path)


def of_folder(config: StatsConfig, card: dict[str, Any], dataset: Dataset | None) -> dict[str, Any]:
    """The figures of a corpus or dataset folder, from its records and shards."""
    records = [record for record in read_records(config.path) if record.split != "dropped"]
    names = [source["name"] for source in card["facts"]["corpus"].get("sources", [])]
    by_source = amounts((names[r.source or 0] if names else "source", r) for r in records)
    scripts = Scripts()
    for document in read_corpus(config.path):
        scripts.add(document.text)
    result = {
        "path": config.path,
        "kind": card["kind"],
        "digest": card["digest"],
        "splits": {name: amount.figures() for name, amount in amounts((r.split, r) for r in records).items()},
        "sources": {name: amount.figures() for name, amount in by_source.items()},
        **lengths([record.bytes for record in records], [r.tokens for r in records if r.tokens is not None]),
        "scripts": scripts.shares(),
    }
    if dataset is not None:
        result |= vocabulary(dataset.tokenizer, [dataset.train, dataset.val], config.top)
    return result


def of_source(config: StatsConfig) -> dict[str, Any]:
    """The figures of a source as `data build` would read it; tokens too, with a tokenizer."""
    tally, scripts, amount = Tally(), Scripts(), Amount()
    tokenizer = open_tokenizer(config.tokenizer)
    counts = np.zeros(tokenizer.vocab_size if tokenizer else 0, np.int64)
    for document in gather(config.path, tally, config.reading):
        scripts.add(document.text)
        amount.bytes.append(document.n_bytes)
        if tokenizer:
            ids = tokenizer.encode_array(document.text)
            amount.tokens.append(len(ids))
            counts += np.bincount(ids, minlength=len(counts))
    if not amount.bytes:
        raise DataError(f"{config.path}: expected text, found none; check the path")
    result: dict[str, Any] = {"path": config.path, "kind": "source", "splits": {"all": amount.figures()}, "sources": {}}
    result |= lengths(amount.bytes, amount.tokens)
    result |= {"scripts": scripts.shares(), "bad_rows": dict(tally.bad.reasons), "binary_files": len(tally.binary)}
    return result | (figures_of_tokens(tokenizer, counts, config.top) if tokenizer else {})


def open_tokenizer(name: str | None) -> Tokenizer | None:
    if name is None:
        return None
    return byte_level() if name == "bytes" else Tokenizer.load(name)


def amounts(found: Iterable[tuple[str, Record]]) -> dict[str, Amount]:
    by_name: dict[str, Amount] = defaultdict(Amount)
    for name, record in found:
        by_name[name].bytes.append(record.bytes)
        if record.tokens is not None:
            by_name[name].tokens.append(record.tokens)
    return dict(by_name)


def lengths(n_bytes: Sequence[int], n_tokens: Sequence[int]) -> dict[str, Any]:
    """Quantiles of document lengths, and how many documents are of 2^i to 2^(i+1) - 1 bytes."""
    powers = np.bincount([n.bit_length() - 1 for n in n_bytes if n], minlength=1).tolist()
    found: dict[str, Any] = {
        "document_bytes": quantiles(n_bytes),
        "histogram": {str(1 << power): count for power, count in enumerate(powers) if count},
    }
    return found | ({"document_tokens": quantiles(n_tokens)} if len(n_tokens) else {})


def quantiles(values: Sequence[int]) -> dict[str, int]:
    """The value at each of QUANTILES: the least that so many are not above (no value between two)."""
    if not len(values):
        return {}
    found = np.quantile(np.array(values), QUANTILES, method="inverted_cdf")
    return {f"{share:g}": int(value) for share, value in zip(QUANTILES, found, strict=True)}


def vocabulary(tokenizer: Tokenizer, shards: Sequence[Shard], top: int) -> dict[str, Any]:
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for shard in shards:
        for start in range(0, shard.n_tokens, PIECE_TOKENS):
            counts += np.bincount(shard.tokens[start : start + PIECE_TOKENS], minlength=len(counts))
    return figures_of_tokens(tokenizer, counts, top)


def figures_of_tokens(tokenizer: Tokenizer, counts: np.ndarray, top: int) -> dict[str, Any]:
    """The tokens met most, and the ordinary ones that never came up: rows of the embedding that learn nothing."""
    order = np.argsort(-counts, kind="stable")[:top].tolist()
    total = max(1, int(counts.sum()))
    never = [i for i in np.flatnonzero(counts == 0).tolist() if tokenizer.token_of(i) and not tokenizer.is_special(i)]
    frequent = [
        {"id": i, "token": shown(tokenizer, i), "count": int(counts[i]), "share": round(int(counts[i]) / total, 5)}
        for i in order
        if counts[i]
    ]
    return {
        "vocab_size": tokenizer.vocab_size,
        "frequent_tokens": frequent,
        "unused_tokens": len(never),
        "first_unused": [shown(tokenizer, i) for i in never[:SHOWN_UNUSED]],
    }


def shown(tokenizer: Tokenizer, number: int) -> str:
    """A token as people read it: what it decodes to, in quotes where that is text; a special one by its name."""
    if tokenizer.is_special(number):
        return tokenizer.token_of(number)
    data = tokenizer.token_bytes(number)
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)


def table(result: dict[str, Any], markdown: bool = False) -> str:
    """The figures for people: aligned columns, or tables of Markdown."""
    parts = []
    heads = ["", "documents", "bytes", "tokens", "bytes/token"]
    for title, key in (("split", "splits"), ("source", "sources")):
        rows = [[name, *amount_cells(amount)] for name, amount in result[key].items()]
        if rows and (key == "splits" or len(rows) > 1):
            parts.append(grid([[title, *heads[1:]], *rows], markdown))
    names = [f"{float(share):.0%}" for share in result["document_bytes"]]
    rows = [["bytes", *(f"{value:,}" for value in result["document_bytes"].values())]]
    if "document_tokens" in result:
        rows.append(["tokens", *(f"{value:,}" for value in result["document_tokens"].values())])
    parts.append(grid([["of a document", *names], *rows], markdown))
    scripts = [f"{name} {share:.1%}" for name, share in result["scripts"].items()]
    parts.append(f"scripts: {', '.join(scripts) or 'none'}")
    parts += [f"bad rows, {reason}: {count:,}" for reason, count in result.get("bad_rows", {}).items()]
    if "frequent_tokens" in result:
        frequent = [f"{row['token']} {row['share']:.2%}" for row in result["frequent_tokens"]]
        parts.append(f"most frequent tokens: {', '.join(frequent)}")
        first = f": {', '.join(result['first_unused'])}" if result["unused_tokens"] else ""
        more = " …" if result["unused_tokens"] > SHOWN_UNUSED else ""
        parts.append(f"never used: {result['unused_tokens']:,} of {result['vocab_size']:,} tokens{first}{more}")
    return "\n\n".join(parts)


def amount_cells(amount: dict[str, Any]) -> list[str]:
    tokens = [f"{amount['tokens']:,}", f"{amount['bytes_per_token']:.2f}"] if "tokens" in amount else ["", ""]
    return [f"{amount['documents']:,}", f"{amount['bytes']:,}", *tokens]


def grid(rows: list[list[str]], markdown: bool) -> str:
    """Rows of cells, the first the head: numbers to the right."""
    if markdown:
        lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )
