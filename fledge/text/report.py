"""Comparing tokenizers on texts: bytes per token by domain, fertility, unused entries, how words are split.

A domain is the first folder of a document's path, or the file. A word is what stands between spaces; so fertility
(tokens per word) says little of languages that write none. The baseline is one token per character.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fledge.errors import ConfigError, DataError
from fledge.lineage import check_output_file, make_folder, write_text_durably
from fledge.log import Progress
from fledge.text.config import TokenizerReportConfig
from fledge.text.documents import Document, read_documents, total_bytes
from fledge.text.report_page import page
from fledge.text.tokenizer import Tokenizer, byte_level

MAX_DOMAINS = 40
UNUSED_SHOWN = 12
MAX_DISTINCT_WORDS = 200_000  # counted of a text; later new ones are left out


@dataclass
class Amount:
    """How much text, in four measures."""

    n_documents: int = 0
    n_bytes: int = 0
    n_characters: int = 0
    n_words: int = 0

    def add(self, document: Document) -> None:
        self.n_documents += 1
        self.n_bytes += document.n_bytes
        self.n_characters += len(document.text)
        self.n_words += len(document.text.split())


@dataclass
class Measured:
    """One tokenizer's counts: tokens by domain, and how often each id came up."""

    name: str
    tokenizer: Tokenizer
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lossless: bool = True
    used: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.used = np.zeros(self.tokenizer.vocab_size, dtype=np.int64)

    def add(self, document: Document) -> None:
        ids = self.tokenizer.encode_array(document.text)
        self.tokens[document.domain] += len(ids)
        self.used += np.bincount(ids, minlength=len(self.used))
        self.lossless = self.lossless and self.tokenizer.decode(ids.tolist()) == document.text

    def unused(self) -> list[int]:
        """Ordinary ids that never came up: rows of the embedding that would not be trained."""
        never = map(int, np.flatnonzero(self.used == 0))
        return [i for i in never if self.tokenizer.token_of(i) and not self.tokenizer.is_special(i)]


def report_tokenizers(config: TokenizerReportConfig, json: bool = False) -> dict[str, Any]:
    """`fledge tokenizer report`: the figures of every tokenizer named; a table for people unless `json`."""
    if config.out is not None:
        check_output_file(config.out)
    measured = [Measured(name, open_tokenizer(name)) for name in names_of(config.tokenizer)]
    amounts: dict[str, Amount] = defaultdict(Amount)
    vocabulary: Counter[str] = Counter()
    expected = min(total_bytes(config.text), config.limit_bytes or 1 << 62)
    progress = Progress("measure, bytes", expected)
    done = 0
    for document in read_documents(config.text, config.split, config.limit_bytes):
        amounts[document.domain].add(document)
        count_words(vocabulary, document.text)
        for one in measured:
            one.add(document)
        done += document.n_bytes
        progress.update(min(done, expected - 1))
    progress.close()
    whole = total(list(amounts.values()))
    if not whole.n_bytes:
        raise DataError(f"{config.text}: expected text to measure on, found none; check the path and the split")
    result = {
        "text": str(config.text),
        "documents": whole.n_documents,
        "bytes": whole.n_bytes,
        "characters": whole.n_characters,
        "words": whole.n_words,
        "bytes_per_character": ratio(whole.n_bytes, whole.n_characters),
        "tokenizers": [figures(one, amounts, whole, vocabulary, config.words) for one in measured],
    }
    if config.out is not None:
        make_folder(config.out.parent)
        write_text_durably(config.out, page(result))
        result["out"] = str(config.out)
    if not json:
        print(table(result))
        if config.out is not None:
            print(f"wrote {config.out}")
    return result


def count_words(vocabulary: Counter[str], text: str) -> None:
    words = text.split()
    if len(vocabulary) >= MAX_DISTINCT_WORDS:
        words = [word for word in words if word in vocabulary]
    vocabulary.update(words)


def single_token_share(tokenizer: Tokenizer, vocabulary: Counter[str]) -> float:
    """Share of the text's words, each as often as it stands there, that are one token at the beginning of a text or
    after a space."""
    words = list(vocabulary)
    alone = tokenizer.encode_batch(words)
    spaced = tokenizer.encode_batch([" " + word for word in words])
    found = sum(vocabulary[word] for word, *ways in zip(words, alone, spaced, strict=True) if min(map(len, ways)) == 1)
    return ratio(found, vocabulary.total())


def names_of(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("tokenizer: expected a folder, a tokenizer.json or `bytes`, got nothing")
    return names


def open_tokenizer(name: str) -> Tokenizer:
    return byte_level() if name == "bytes" else Tokenizer.load(Path(name))


def total(amounts: list[Amount]) -> Amount:
    return Amount(
        sum(a.n_documents for a in amounts),
        sum(a.n_bytes for a in amounts),
        sum(a.n_characters for a in amounts),
        sum(a.n_words for a in amounts),
    )


def ratio(above: int, below: int) -> float:
    return round(above / below, 4) if below else 0.0


def figures(
    one: Measured, amounts: dict[str, Amount], whole: Amount, vocabulary: Counter[str], words: tuple[str, ...]
) -> dict[str, Any]:
    """One tokenizer's part of the result."""
    n_tokens = sum(one.tokens.values())
    unused = one.unused()
    largest = sorted(amounts, key=lambda name: (-amounts[name].n_bytes, name))[:MAX_DOMAINS]
    return {
        "name": one.name,
        "kind": one.tokenizer.kind,
        "vocab_size": one.tokenizer.vocab_size,
        "digest": one.tokenizer.digest,
        "tokens": n_tokens,
        "bytes_per_token": ratio(whole.n_bytes, n_tokens),
        "characters_per_token": ratio(whole.n_characters, n_tokens),
        "tokens_per_word": ratio(n_tokens, whole.n_words),
        "single_token_words": single_token_share(one.tokenizer, vocabulary),
        "lossless": one.lossless,
        "unused": len(unused),
        "unused_examples": [shown(one.tokenizer, i) for i in unused[-UNUSED_SHOWN:]],
        "domains": {
            name: {
                "bytes": amounts[name].n_bytes,
                "tokens": one.tokens[name],
                "bytes_per_token": ratio(amounts[name].n_bytes, one.tokens[name]),
                "tokens_per_word": ratio(one.tokens[name], amounts[name].n_words),
            }
            for name in largest
        },
        "words": {word: [shown(one.tokenizer, i) for i in one.tokenizer.encode(word)] for word in words},
    }


def shown(tokenizer: Tokenizer, token_id: int) -> str:
    """A token for people: its text, or its bytes in hexadecimal where they are part of a character."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode("utf-8") or tokenizer.token_of(token_id)
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)


def table(result: dict[str, Any]) -> str:
    """The result as lines for people."""
    rows = result["tokenizers"]
    lines = [
        f"{result['text']}: {result['documents']} documents, {result['bytes']} bytes, {result['words']} words",
        "",
        f"{'tokenizer':32} {'ids':>8} {'bytes/token':>12} {'chars/token':>12} {'tokens/word':>12} "
        f"{'one token':>10} {'unused':>8}  lossless",
        f"{'(one token per character)':32} {'':>8} {result['bytes_per_character']:12.3f} {1:12.3f}",
    ]
    for row in rows:
        lines.append(
            f"{short(row['name'], 32):32} {row['vocab_size']:8d} {row['bytes_per_token']:12.3f} "
            f"{row['characters_per_token']:12.3f} {row['tokens_per_word']:12.3f} "
            f"{100 * row['single_token_words']:8.1f} % {row['unused']:8d}  "
            f"{'yes' if row['lossless'] else 'no'}"
        )
    lines += [
        "",
        f"{'bytes per token by domain':32} {'bytes':>10}" + "".join(f" {short(r['name'], 16):>16}" for r in rows),
    ]
    for domain, first in rows[0]["domains"].items():
        values = "".join(f" {row['domains'][domain]['bytes_per_token']:16.3f}" for row in rows)
        lines.append(f"{short(domain, 32):32} {first['bytes']:10d}{values}")
    for row in rows:
        for word, parts in row["words"].items():
            lines += ["", f"{short(row['name'], 32)}: {word!r} is {len(parts)} tokens: {' '.join(map(repr, parts))}"]
        if row["unused"]:
            lines.append(
                f"{short(row['name'], 32)}: never used, for example {' '.join(map(repr, row['unused_examples']))}"
            )
    return "\n".join(lines)


def short(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[-(width - 1) :]
