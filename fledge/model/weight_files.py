"""Which files of a folder hold its weights: one safetensors file, or those that an index names. Pickles are told by
name and first bytes, and never opened."""

from __future__ import annotations

import re
import struct
from contextlib import ExitStack
from pathlib import Path

from fledge.config import read_json
from fledge.errors import CheckpointError
from fledge.model.safetensors_file import SafetensorsFile

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_NAME = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLE_ENDS = (
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".th",
    ".joblib",
    ".pt2",
    ".npz",
    ".mar",
)  # .bin may be a llama2.c model
PICKLE_HEADS = (b"PK\x03\x04", b"\x80", b"\x1f\x8b", b"c", b"(", b"]", b"}")  # zip, protocols 2-5, gzip, 0 and 1
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +=-]{0,200}")
LLAMA2C = struct.Struct("<7i")
MAX_LLAMA2C = 1 << 24  # no number of such a header is larger


def opened(folder: Path, files: ExitStack) -> dict[str, SafetensorsFile]:
    """Each tensor's name -> its file, checked and left open until `files` closes.

    Raises CheckpointError for files that are missing or damaged, a tensor that stands in two of them, and one that is
    not where the index says.
    """
    shard_of = read_index(folder)
    where: dict[str, SafetensorsFile] = {}
    for name in sorted(set(shard_of.values())) or [single_file(folder)]:
        file = files.enter_context(SafetensorsFile(folder / name))
        twice = next((tensor for tensor in file.entries if tensor in where), None)
        if twice is not None:
            other = where[twice].path.name
            raise CheckpointError(f"{INDEX}: {twice[:80]!r}: expected in one file, got {other} and {name}; remove one")
        where.update(dict.fromkeys(file.entries, file))
    for tensor, name in shard_of.items():
        if tensor not in where or where[tensor].path.name != name:
            found = where[tensor].path.name if tensor in where else "no file"
            raise CheckpointError(
                f"{INDEX}: {tensor[:80]!r}: expected in {name}, found in {found}; download the folder again"
            )
    return where


def read_index(folder: Path) -> dict[str, str]:
    """Name of a tensor -> its file in the folder; empty for a folder of one file. transformers too reads that file
    where both are there. Raises CheckpointError for a name that leads out of the folder."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return {}
    return checked_index(folder, INDEX, ".safetensors")


def checked_index(folder: Path, index_name: str, end: str) -> dict[str, str]:
    """The weight_map of an index, each of its files there. Raises CheckpointError."""
    check_link(folder / index_name)
    index = read_json(folder / index_name, unique=True)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_name}: expected a weight_map of names to files; download the folder again")
    for name in sorted(set(map(str, weight_map.values()))):
        check_inside(folder, name, index_name, end)
    return {tensor: str(name) for tensor, name in weight_map.items()}


def single_file(folder: Path) -> str:
    """WEIGHTS, if the folder has it. Raises CheckpointError."""
    if (folder / WEIGHTS).is_file():
        check_link(folder / WEIGHTS)
        return WEIGHTS
    refuse_pickle(folder)
    raise CheckpointError(f"{folder}: expected {WEIGHTS} or {INDEX}, found neither; download the folder again")


def check_inside(folder: Path, name: str, index_name: str, end: str) -> None:
    """Raise CheckpointError unless `name` is a plain file name in `folder` and no link leads it elsewhere."""
    if not FILE_NAME.fullmatch(name) or not name.endswith(end):
        raise CheckpointError(
            f"{index_name}: shard {name[:80]!a} is not the name of a {end} file in the folder; download it again"
        )
    check_link(folder / name)
    if not (folder / name).is_file():
        raise CheckpointError(f"{name}: missing file; download the folder again")


def check_link(path: Path) -> None:
    """Raise CheckpointError for a link, but one of a hub cache, where snapshots/REVISION/FILE, or one in a folder
    there, leads to blobs/HASH of the same repository."""
    if not path.is_symlink():
        return
    snapshots = next((above for above in path.absolute().parents if above.name == "snapshots"), None)
    if snapshots is None or path.resolve().parent != (snapshots.parent / "blobs").resolve():
        raise CheckpointError(f"{path.name}: a link out of the folder is not followed; copy the file")


def refuse_pickle(folder: Path) -> None:
    """Raise CheckpointError for a folder that holds weights in pickled form."""
    names = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    for path in names:
        if is_pickle(path) or path.name == PICKLE_INDEX:
            raise pickled(path)


def pickled(path: Path) -> CheckpointError:
    """The error for a pickled file, with both ways to convert it."""
    return CheckpointError(
        f"{path.name}: pickled weights can run code and are not loaded; where you trust them save them as safetensors "
        f"(transformers: model.save_pretrained(folder)), or let fledge convert FOLDER TARGET trust_pickle=true read "
        f"the plain tensors of its {PICKLE_NAME}"
    )


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, one of torch's zip files or an archive of such, by its name and first bytes."""
    if path.suffix.lower() != ".bin":
        return path.suffix.lower() in PICKLE_ENDS
    with open(path, "rb") as file:
        head = file.read(512)
    if len(head) >= LLAMA2C.size and all(0 < abs(n) < MAX_LLAMA2C for n in LLAMA2C.unpack(head[: LLAMA2C.size])):
        return False
    return path.name.startswith("pytorch_model") or head.startswith(PICKLE_HEADS) or head[257:262] == b"ustar"
