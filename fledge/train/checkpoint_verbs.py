"""`fledge checkpoint show`, `verify` and `reshard`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from fledge import lineage
from fledge.errors import CheckpointError, ConfigError
from fledge.log import Progress
from fledge.model.folder import write_json
from fledge.train.checkpoint_config import ReshardConfig, ShowCheckpointsConfig, VerifyCheckpointsConfig
from fledge.train.checkpointing import (
    OPTIMIZER,
    STATE,
    best_name,
    fsync_tree,
    list_checkpoints,
    newest_valid,
    read_state,
    swap_in,
    unwritten,
)
from fledge.train.slices import Slice, SlicedTensors, cut_box, index_name, index_of, write_slices

STEM = Path(OPTIMIZER).stem


def show_checkpoints(config: ShowCheckpointsConfig, json: bool = False) -> dict[str, Any]:
    """Print and give a row for each checkpoint from its card alone; what is damaged is told by `verify`."""
    rows = []
    for folder in folders_of(config.path):
        card = lineage.read_card(folder)
        rows.append({
            "checkpoint": folder.name,
            "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "ranks": card["facts"].get("ranks", 1),
            "best": best_name(folder.parent) == folder.name,
            "digest": card["digest"],
        })  # fmt: skip
    if not json:
        for row in rows:
            ranks = f"{row['ranks']} rank{'s' if row['ranks'] > 1 else ''}"
            best = " · best" if row["best"] else ""
            print(f"{row['checkpoint']} · {row['bytes'] / 1e6:,.1f} MB · {ranks} · {row['digest'][:12]}{best}")
    return {"checkpoints": rows}


def verify_checkpoints(config: VerifyCheckpointsConfig, json: bool = False) -> dict[str, Any]:
    """Read all of each checkpoint and say what is whole. Raises CheckpointError naming the damaged files, after
    the last one has been read."""
    folders, wrong, whole = folders_of(config.path), [], []
    progress = Progress("checkpoint", len(folders))
    for number, folder in enumerate(folders, 1):
        try:
            state = read_state(folder)
            with SlicedTensors(folder, STEM) as sliced:
                for file in range(1, sliced.n_files + 1):
                    sliced.file(file)
            whole.append({"checkpoint": folder.name, "step": state.step, "tokens": state.tokens})
        except CheckpointError as error:
            wrong.append(str(error))
        progress.update(number)
    progress.close()
    if not json:
        for row in whole:
            print(f"{row['checkpoint']}: whole · step {row['step']} · {row['tokens']:,} tokens")
    if wrong:
        raise CheckpointError(f"{len(wrong)} of {len(folders)} checkpoints are damaged: {'; '.join(wrong)}")
    return {"checkpoints": whole}


def reshard(config: ReshardConfig, json: bool = False) -> dict[str, Any]:
    """Write the checkpoint with its optimizer's state in `ranks` files; the model's files are the same for any number.
    Raises ConfigError where `out` is there already, CheckpointError for a damaged checkpoint or a full disk."""
    folder = one_of(config.path)
    card, out = lineage.read_card(folder), config.out
    if out.exists():
        raise ConfigError(f"out: expected a new folder, got {out}, which is there; choose another")
    lineage.check_writable(out.parent)
    scratch = out.with_name(f".new-{out.name}-{os.getpid()}")
    try:
        shutil.copytree(folder, scratch, ignore=shutil.ignore_patterns(f"{STEM}*.safetensors*", lineage.CARD))
        with SlicedTensors(folder, STEM) as sliced:
            write_shards(scratch, sliced, config.ranks)
        fsync_tree(scratch)
        lineage.write_card(scratch, card["kind"], card["parents"], card.get("config"), {"ranks": config.ranks})
        swap_in(scratch, out)
    except OSError as error:
        raise unwritten(out, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not json:
        print(f"wrote {out}")
    return {"out": str(out), "from": str(folder), "ranks": config.ranks}


def write_shards(folder: Path, sliced: SlicedTensors, n_ranks: int) -> None:
    """The tensors in `n_ranks` files and their index, or in one file without; one file at a time is in memory."""
    rows: list[list[Any]] = []
    for number in range(1, n_ranks + 1):
        slices = []
        for name, entry in sliced.entries.items():
            box = cut_box(entry.shape, number, n_ranks)
            if box is not None:
                slices.append(Slice(name, entry.shape, box[0], sliced.read_part(name, *box)))
        rows += write_slices(folder, STEM, number, n_ranks, slices)
    if n_ranks == 1:
        (folder / f"{STEM}-00001-of-00001.safetensors").rename(folder / OPTIMIZER)
    else:
        write_json(folder / index_name(STEM), index_of(rows, n_ranks))


def folders_of(path: Path) -> list[Path]:
    """The checkpoints meant by a path, oldest first. Raises CheckpointError for none."""
    if (path / STATE).is_file():
        return [path]
    found = list_checkpoints(path / "checkpoints") or list_checkpoints(path)
    if not found:
        raise CheckpointError(f"{path}: expected a run folder with checkpoints, or a checkpoint; found neither")
    return found


def one_of(path: Path) -> Path:
    """The checkpoint meant, whole. Raises CheckpointError."""
    if (path / STATE).is_file():
        read_state(path)
        return path
    found = newest_valid(folders_of(path)[0].parent)
    assert found is not None
    return found[0]
