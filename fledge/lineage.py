"""Lineage: what an artefact is made of, by content.

Every artefact folder (corpus, tokenizer, checkpoint, model) carries a `card.json`: its kind, the digest of its own
content, the digests of its parents, the config that made it and the code's version. `verify` reads the content again.
Imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fledge
from fledge.errors import CheckpointError, ConfigError

CARD = "card.json"
CARD_FORMAT = 1
PIECE_BYTES = 16 << 20


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces: large ones, as a thread waits for its turn after each."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        piece = memoryview(bytearray(min(PIECE_BYTES, max(1, os.fstat(file.fileno()).st_size))))
        while n := file.readinto(piece):
            digest.update(piece[:n])
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a plain value's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def folder_digest(files: dict[str, str]) -> str:
    """One digest for a folder, from its files' digests by relative name."""
    return sha256_json(sorted(files.items()))


def write_card(
    folder: str | Path,
    kind: str,
    parents: dict[str, str] | None = None,
    config: Any = None,
    facts: dict[str, Any] | None = None,
    skip: tuple[str, ...] = (),
    known: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write `card.json` over every file now in `folder` (but `skip`) and give it back.

    `parents` maps a role ("tokenizer", "corpus", "base") to that artefact's digest; `facts` are figures worth keeping;
    `known` holds digests of files that need not be read again. The card's digest is of content only: equal content
    gives an equal digest whenever and wherever it was made. Raises ConfigError, and writes nothing, where the card of
    another kind of artefact stands.
    """
    folder = Path(folder)
    refuse_other_artefact(folder, kind)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    names = [name for name in names if name != CARD and name not in skip]
    files = {name: (known or {}).get(name) or sha256_file(folder / name) for name in names}
    card = {
        "format": CARD_FORMAT,
        "kind": kind,
        "digest": folder_digest(files),
        "parents": parents or {},
        "files": files,
        "config": config,
        "facts": facts or {},
        "fledge": fledge.__version__,
    }
    write_text_durably(folder / CARD, json.dumps(card, indent=1) + "\n")
    return card


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of an artefact folder. Raises CheckpointError if there is none or it is of a later format."""
    path = Path(folder) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        found = card["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected a card, found none; the folder was not written by fledge") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: damaged card; restore it or use an earlier folder") from None
    if not isinstance(found, int) or found > CARD_FORMAT:
        raise CheckpointError(f"{path}: expected format at most {CARD_FORMAT}, got {found!r:.40}; use a later fledge")
    check_card(card, str(path))
    return card


def check_card(card: dict[str, Any], at: str) -> None:
    """Raises CheckpointError for a card without one of its parts, or with one of the wrong type."""
    for key, wanted in (("kind", str), ("digest", str), ("parents", dict), ("files", dict), ("facts", dict)):
        if not isinstance(card.get(key), wanted):
            raise CheckpointError(f"{at}: damaged card ({key!r} is missing or wrong); restore it or use another folder")
    for key in ("parents", "files"):
        wrong = next((name for name, digest in card[key].items() if not isinstance(digest, str)), None)
        if wrong is not None:
            raise CheckpointError(f"{at}: damaged card (no digest for {wrong!r:.60}); restore it or use another folder")


def artefact_digest(folder: str | Path) -> str:
    """The digest of an artefact: its card's, or for a folder from elsewhere that of the files it holds now."""
    try:
        return str(read_card(folder)["digest"])
    except CheckpointError:
        folder = Path(folder)
        return folder_digest({path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()})


def verify(folder: str | Path, share: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """The card, after every file it names was found with its digest; where several processes read it together, those
    files that are the `share[0]`-th's of `share[1]`.

    Raises CheckpointError naming the first that differs."""
    folder, (index, n_readers) = Path(folder), share
    card = read_card(folder)
    for name, digest in list(card["files"].items())[index::n_readers]:
        path = folder / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise CheckpointError(f"{folder / CARD}: file name {name!r} points outside the folder")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing file; expected SHA-256 {digest[:12]}…")
        found = sha256_file(path)
        if found != digest:
            raise CheckpointError(f"{path}: expected SHA-256 {digest[:12]}…, got {found[:12]}…; the file is damaged")
    return card


def make_folder(path: str | Path) -> Path:
    """The folder at `path`, made with those above it. Raises ConfigError if a file stands there or it can't be made."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path}: expected a folder to write to, got a file; choose another") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path}: can't be made a folder to write to ({reason}); choose another") from None
    return path


def refuse_other_artefact(folder: str | Path, *kinds: str) -> None:
    """Raises ConfigError if the folder holds an artefact of another kind than `kinds`, whose card would be lost."""
    if not (Path(folder) / CARD).is_file():
        return
    try:
        found = read_card(folder)["kind"]
    except CheckpointError:
        return  # a damaged card vouches for nothing
    if found not in kinds:
        raise ConfigError(
            f"{folder}: expected a folder for {kinds[0]} alone, got one that holds {found}; choose another"
        )


def refuse_without_card(folder: str | Path, names: Iterable[str], verb: str) -> None:
    """Raises ConfigError if files of `names`, which `verb` would replace, are there without a card: somebody's own."""
    folder = Path(folder)
    there = [name for name in names if (folder / name).exists()]
    if there and not (folder / CARD).exists():
        raise ConfigError(
            f"{folder}: expected a folder to write to, got one with {', '.join(there)} that {verb} did not write; "
            "choose another, or move what is there"
        )


def check_output_file(path: str | Path) -> None:
    """Try whether the file could be written, before work that would be lost. Raises ConfigError."""
    path = Path(path)
    check_writable(path.parent)
    if path.is_dir():
        raise ConfigError(f"{path}: expected a file to write, got a folder; choose another")


def check_writable(folder: str | Path) -> None:
    """Try whether a file could be written into `folder`, before work that would be lost; leaves nothing behind. Raises
    ConfigError."""
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{folder}: can't be written to ({reason}); choose another folder") from None
    finally:
        for path in made:
            path.rmdir()


def write_text_durably(path: str | Path, text: str) -> None:
    """Write beside, fsync, rename, fsync the folder: after a crash the file is the old one or the new one. What can't
    be written whole (a full disk) leaves nothing behind, and the error names `path`."""
    path = Path(path)
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        rename(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        error.filename = str(path)  # not the scratch file's, which nobody knows
        raise
    fsync_folder(path.parent)


def rename(source: str | Path, target: str | Path) -> None:
    """`os.replace`, done too where a file server has renamed, its reply was lost, and asked again it finds nothing."""
    try:
        os.replace(source, target)
    except FileNotFoundError:
        if os.path.lexists(source) or not os.path.lexists(target):
            raise


def fsync_folder(folder: str | Path) -> None:
    """Make a folder's entries durable (POSIX). One that knows no such call (EINVAL) does as it does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)
