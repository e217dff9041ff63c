"""`data build`: text → corpus.jsonl → shards. Imports no torch.

Two stages in one folder. The first gathers and holds out; the second, when a tokenizer is given, tokenises. Each reuses
what is there when its inputs' digests are the same. `card.json` is written last and taken away first, so a folder is
finished or has no card that says so: killed at any moment, the same command mends it.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.config import to_dict
from fledge.data import corpus as corpora
from fledge.data.beside import beside, clean, remove
from fledge.data.cleaning.corpus import CLEANED, cleaned
from fledge.data.cleaning.corpus import inputs as cleaning_inputs
from fledge.data.cleaning.lines import summary_lines
from fledge.data.config import PYTHON, BuildConfig
from fledge.data.corpus import CORPUS, DOCUMENTS, Record, read_corpus, read_records
from fledge.data.corpus_lines import BEGINS, CorpusLines
from fledge.data.data_card import DATA_CARD, write_data_card
from fledge.data.in_threads import threads_to_use
from fledge.data.shards import KIND, SPLITS, TOKENIZER, Dataset, open_shards, token_type, write_shard
from fledge.data.sources import checked
from fledge.data.train_shard import TrainShard, counted, given_tokenizer
from fledge.errors import CheckpointError, ConfigError, DataError
from fledge.lineage import (
    CARD,
    fsync_folder,
    make_folder,
    read_card,
    refuse_other_artefact,
    refuse_without_card,
    verify,
    write_card,
)
from fledge.log import warn
from fledge.text.config import ReadingConfig
from fledge.text.documents import Tally, refuse_inside
from fledge.text.source_files import is_url
from fledge.text.tokenizer import Tokenizer, characters

RECIPE = 2  # raised when the same config and sources would give another corpus
SHARDS = tuple(f"{split}{ending}" for split in SPLITS for ending in (".bin", ".idx.npy"))
OWN = (DOCUMENTS, *SHARDS, CORPUS)  # in the order in which they are taken away: where one is, the corpus is
QUARANTINE = "quarantine.jsonl"  # bad rows: beside the corpus, no part of it
SHOWN_DOCUMENTS = 40


def build(config: BuildConfig, json: bool = False) -> dict[str, Any]:
    """Build the corpus and, with a tokenizer, the shards in `config.out`; gives counts, what is held out and digests.

    Raises DataError if the source holds no text, ConfigError if `out` stands in it. Prints a summary unless `json`.
    """
    began = time.monotonic()
    refuse_own_output(config)
    refuse_other_artefact(config.out, "corpus", KIND)
    refuse_strangers(config.out)
    checked(config.source)
    train = TrainShard(config.out, given_tokenizer(config.tokenizer), config.threads)  # before anything is taken away
    make_folder(config.out)
    clean(config.out, (*OWN, TOKENIZER, CARD, CLEANED, QUARANTINE, DATA_CARD))
    try:
        card, reused = build_corpus(config, train)
        result = {"out": str(config.out), "kind": card["kind"], "reused_corpus": reused, **card["facts"]["corpus"]}
        if config.tokenizer is not None:
            card, reused = build_shards(config, config.tokenizer, card, train)
            result |= {"reused_shards": reused, **card["facts"]["shards"]}
    finally:
        train.remove()
    if card["config"].get("licence") != config.licence:
        card = write_own_card(config, card["kind"], card["parents"], card["facts"], card["files"][CORPUS])
    write_data_card(config.out, card)
    result |= {"kind": card["kind"], "digest": card["digest"], "seconds": round(time.monotonic() - began, 2)}
    if not json:
        print(summary(result))
    return result


def from_text_path(path: str | Path, tokenizer: str | Path, val_fraction: float, folder: str | Path) -> Dataset:
    """A dataset made from a raw text file or folder, kept in `folder` and reused from there.

    `tokenizer` is `characters`, `bytes` or a tokenizer folder. A path that is a dataset folder already is only opened.
    """
    if (Path(path) / CARD).is_file() and read_card(path)["kind"] == KIND:
        return open_shards(path)
    source = str(Path(path).absolute())  # a folder named `python` is meant, not the installation
    build(BuildConfig(Path(folder), source, str(tokenizer), val_fraction), json=True)
    return open_shards(folder)


def check_text_path(path: str | Path, tokenizer: str | Path, folder: str | Path) -> None:
    """Raises what `from_text_path` would for a path or a tokenizer that isn't there or can't be used and for a `folder`
    inside of the text, before anything is made."""
    source = Path(path)
    if not source.exists():
        raise DataError(f"{path}: expected a dataset folder, a folder of text or a text file, found none; check it")
    if not (source / CARD).is_file():
        refuse_own_output(BuildConfig(Path(folder), str(source.absolute()), str(tokenizer)))
    given_tokenizer(tokenizer)


def refuse_own_output(config: BuildConfig) -> None:
    """Raises ConfigError if what is written would take the place of a source or become part of it."""
    for source in config.sources:
        if source == PYTHON or is_url(source):
            continue
        refuse_inside(source, config.out)
        if Path(source).resolve() in {(config.out / name).resolve() for name in (*OWN, QUARANTINE, DATA_CARD)}:
            raise ConfigError(f"source: expected text, got {source}, which is written here; choose another out")


def refuse_strangers(out: Path) -> None:
    """Raises ConfigError if files that would be replaced are somebody's own. A killed build has no card, but its corpus
    begins as a corpus does."""
    if (out / CORPUS).is_file():
        with open(out / CORPUS, "rb") as file:
            if file.read(len(BEGINS)) == BEGINS:
                return
    refuse_without_card(out, OWN, "data build")


def build_corpus(config: BuildConfig, train: TrainShard) -> tuple[dict[str, Any], bool]:
    """The card of a folder whose corpus is that of `config`, and whether it was there already. If not, `train` has what
    could be tokenised on the way."""
    held = None if config.clean.steps else corpora.HeldTexts()
    records, tally = surveyed(config, held)
    inputs = {
        "recipe": RECIPE,
        "sources": corpora.source_digest(records),
        "reading": {key: value for key, value in to_dict(config.reading).items() if key != "max_bad_share"},
        "val_fraction": config.val_fraction,
        "minimum_eval_bytes": config.minimum_eval_bytes,
        "near_duplicate": config.near_duplicate,
        "clean": cleaning_inputs(config.clean),
    }
    old = finished(config.out)
    if old is not None and old["facts"].get("corpus_inputs") == inputs:
        return old, True
    sources = source_facts(config, records)
    if old is not None:
        warn_of_others(config, old["facts"]["corpus"].get("sources", []), sources)
    forget(config.out, OWN)
    if tally.replaced:
        warn(f"{len(tally.replaced)} files are not UTF-8; undecodable bytes became U+FFFD: {shown(tally.replaced)}")
    by_path = {record.path: record for record in records}
    read = functools.partial(corpora.wanted, config, by_path, "train")
    with cleaned(config.clean, records, read, config.out) as left, beside(config.out / CORPUS) as path:
        text = replace(config, source=str(left.text), reading=ReadingConfig()) if left.text else config
        records, digest = write_corpus(text, left.records, path, held.texts if held is not None else None, train)
    with beside(config.out / DOCUMENTS) as path:
        corpora.write_records(path, records)
    facts = {
        "corpus": corpus_facts(records)
        | ({"cleaning": left.steps} if left.steps else {})
        | tally_facts(tally)
        | {"sources": sources},
        "corpus_inputs": inputs,
        "corpus_sha256": digest,
    }
    return write_own_card(config, "corpus", {}, facts, digest), False


def surveyed(config: BuildConfig, held: corpora.HeldTexts | None) -> tuple[list[Record], Tally]:
    """What the sources hold, and in `held` what may be held out. Bad rows are in quarantine.jsonl, also where there are
    too many to go on."""
    path, failure = config.out / QUARANTINE, None
    with beside(path) as scratch, open(scratch, "w", encoding="utf-8") as file:
        try:
            found = corpora.survey(config, file, held)
        except DataError as error:
            failure = error
    if not path.stat().st_size:
        remove(path)
    elif failure is not None:
        raise DataError(f"{failure}; every one of them is told in {path}") from None
    if failure is not None:
        raise failure
    return found


def tally_facts(tally: Tally) -> dict[str, Any]:
    """How many files and rows of what sort were met."""
    files = {f"{name}_files": len(getattr(tally, name)) for name in ("replaced", "binary", "empty")}
    return {**files, "bad_rows": dict(sorted(tally.bad.reasons.items()))}


def source_facts(config: BuildConfig, records: list[Record]) -> list[dict[str, Any]]:
    """Of each source: its name, how much it held, and the digest of that."""
    found = []
    for number, name in enumerate(config.sources):
        own = [record for record in records if (record.source or 0) == number]
        n_bytes = sum(record.bytes for record in own)
        found.append({"name": name, "documents": len(own), "bytes": n_bytes, "digest": corpora.source_digest(own)})
    return found


def warn_of_others(config: BuildConfig, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """Say that the place of a corpus from other sources is taken: a source that was left out is the installation."""
    before, after = ([one["name"] for one in some] for some in (old, new))
    if before and before != after:
        warn(f"{config.out}: built from {shown(before)} before, built anew from {shown(after)}; the older is gone")


def write_corpus(
    config: BuildConfig, records: list[Record], path: Path, held: dict[str, bytes] | None, train: TrainShard
) -> tuple[list[Record], str]:
    """The records of what was written, and its SHA-256."""
    whole = corpora.hold_out_whole(records, config)
    if whole is not None:
        with open(path, "wb") as file:
            lines = CorpusLines(file)
            whole = corpora.write_whole(config, whole, lines, held, train.take)
        if any(record.split == "val" for record in whole):
            return whole, lines.sha256
        train.remove()
    with open(path, "wb") as file:
        lines = CorpusLines(file)
        return corpora.write_tails(config, records, lines), lines.sha256


def corpus_facts(records: list[Record]) -> dict[str, Any]:
    """Counts and names for the card and for people."""
    of = {split: [record for record in records if record.split == split] for split in (*SPLITS, "dropped")}
    trained = {record.path for record in of["train"]}
    reasons = Counter(record.reason for record in of["dropped"])
    return {
        "train_documents": len(of["train"]),
        "train_bytes": sum(record.bytes for record in of["train"]),
        "val_documents": len(of["val"]),
        "val_bytes": sum(record.bytes for record in of["val"]),
        "held_out_by": "tail of each document" if any(r.path in trained for r in of["val"]) else "whole documents",
        "held_out": [record.path for record in of["val"]],
        "dropped": dict(sorted(reasons.items())),
        "near_duplicates": [r.path for r in of["dropped"] if r.reason.startswith("near-duplicate")],
    }


def build_shards(
    config: BuildConfig, name: str, card: dict[str, Any], train: TrainShard | None = None
) -> tuple[dict[str, Any], bool]:
    """The card of the folder with shards by the tokenizer `name`, and whether they were there already. `train`: what
    was tokenised with the corpus."""
    out, facts = config.out, {key: value for key, value in card["facts"].items() if key.startswith("corpus")}
    ready = train.counts if train is not None else None
    tokenizer = (train.tokenizer if train is not None else given_tokenizer(name)) or characters_of(out)
    parents = {"corpus": facts["corpus_sha256"], "tokenizer": tokenizer.digest}
    if card["kind"] == KIND and card["parents"] == parents:
        return card, True
    digest = card["files"][CORPUS]
    if card["kind"] == KIND:
        forget(out, ())
        write_own_card(config, "corpus", {}, facts, digest)
    for old in (*SHARDS, TOKENIZER):
        remove(out / old)
    records = read_records(out)
    n_tokens: list[int] = []
    threads = threads_to_use(config.threads)
    for split in SPLITS:
        total = sum(1 for record in records if record.split == split)
        texts = counted((document.text for document in read_corpus(out, split)), split, total)
        with beside(out / f"{split}.bin") as tokens_path, beside(out / f"{split}.idx.npy") as index_path:
            if split == "train" and ready is not None:
                n_tokens += ready
            else:
                n_tokens += write_shard(texts, tokenizer, tokens_path, index_path, threads)
    with beside(out / TOKENIZER) as path:
        tokenizer.save(path)
    used = [record for record in records if record.split != "dropped"]
    used = [replace(record, tokens=count) for record, count in zip(used, n_tokens, strict=True)]
    forget(out, ())
    with beside(out / DOCUMENTS) as path:
        corpora.write_records(path, [*used, *(record for record in records if record.split == "dropped")])
    figures = shard_facts(used, tokenizer)
    facts |= {"dtype": figures["dtype"], "shards": figures}
    return write_own_card(config, KIND, parents, facts, digest), False


def shard_facts(records: list[Record], tokenizer: Tokenizer) -> dict[str, Any]:
    tokens = {split: sum(r.tokens or 0 for r in records if r.split == split) for split in SPLITS}
    n_bytes = sum(record.bytes for record in records)
    return {
        "train_tokens": tokens["train"],
        "val_tokens": tokens["val"],
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_kind": tokenizer.kind,
        "dtype": token_type(tokenizer.vocab_size),
        "bytes_per_token": round(n_bytes / max(1, sum(tokens.values())), 4),
    }


def characters_of(out: Path) -> Tokenizer:
    """Every character of the corpus, held-out text included, as nanoGPT has it."""
    alphabet: set[str] = set()
    for document in read_corpus(out):
        alphabet.update(document.text)
    return characters("".join(sorted(alphabet)))


def finished(out: Path) -> dict[str, Any] | None:
    """The card, if the folder is finished and every file of it has its digest; else None."""
    if not (out / CARD).is_file():
        return None
    try:
        card = verify(out)
    except CheckpointError as error:
        warn(f"{error}; building again")
        return None
    return card if card["kind"] in ("corpus", KIND) else None


def write_own_card(
    config: BuildConfig, kind: str, parents: dict[str, str], facts: dict[str, Any], corpus: str
) -> dict[str, Any]:
    """The card over this verb's own files; anything else in the folder is none of its business. `corpus`: the digest of
    corpus.jsonl, which was read or written just now."""
    mine = {*OWN} if kind == KIND else {CORPUS, DOCUMENTS}
    strangers = []
    for path in config.out.rglob("*"):
        name = path.relative_to(config.out).as_posix()
        if path.is_file() and name not in mine and not (kind == KIND and name.startswith(f"{TOKENIZER}/")):
            strangers.append(name)
    known = {CORPUS: corpus}
    return write_card(config.out, kind, parents, to_dict(config), facts, skip=tuple(strangers), known=known)


def forget(out: Path, names: tuple[str, ...]) -> None:
    """Take the card away first, then the named files: nothing half-built keeps a card that vouches for it."""
    (out / CARD).unlink(missing_ok=True)
    fsync_folder(out)
    for name in names:
        remove(out / name)


def shown(paths: list[str]) -> str:
    rest = len(paths) - SHOWN_DOCUMENTS
    return ", ".join(paths[:SHOWN_DOCUMENTS]) + (f" and {rest} more" if rest > 0 else "")


def summary(result: dict[str, Any]) -> str:
    """What `data build` prints for people."""
    lines = [
        f"train     {result['train_documents']:,} documents, {result['train_bytes']:,} bytes",
        f"held out  {result['val_documents']:,} documents, {result['val_bytes']:,} bytes ({result['held_out_by']})",
        f"          {shown(result['held_out'])}",
    ]
    lines += summary_lines(result.get("cleaning", []))
    lines += [f"dropped   {count:,}: {reason}" for reason, count in result["dropped"].items()]
    if result["near_duplicates"]:
        lines.append(f"          near-duplicates: {shown(result['near_duplicates'])}")
    for name in ("binary", "empty"):
        if result[f"{name}_files"]:
            lines.append(f"skipped   {result[f'{name}_files']:,} {name} files")
    lines += [f"bad rows  {count:,}: {reason} ({QUARANTINE})" for reason, count in result["bad_rows"].items()]
    if "train_tokens" in result:
        lines.append(
            f"shards    {result['train_tokens']:,} + {result['val_tokens']:,} tokens of a vocabulary of "
            f"{result['vocab_size']:,} ({result['bytes_per_token']:.2f} bytes a token)"
        )
    again = " (already there)" if result["reused_corpus"] and result.get("reused_shards", True) else ""
    return "\n".join([*lines, f"{result['kind']} {result['digest'][:12]} in {result['out']}{again}"])
