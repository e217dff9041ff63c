"""Checkpoints: a self-contained model folder plus optimizer state, all or nothing.

Written beside as `.new-…`, every file fsynced, carded with SHA-256 digests, then renamed. A folder without a card that
verifies is not a checkpoint. Deleting renames first, so a kill in between leaves nothing that looks valid.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge import lineage
from fledge.errors import CheckpointError, NonFiniteError
from fledge.log import json_safe, warn
from fledge.model.safetensors_file import SafetensorsFile, together, write_safetensors
from fledge.train.ranks import Alone, Ranks, Team

FORMAT = 1
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
BEST = "best.json"
ALONE = Alone()
SPARE_BYTES = 16 << 20


@dataclass
class State:
    """What a run must know to go on: counters, never generator state."""

    step: int = 0
    """Updates done."""
    drawn: int = 0
    """Batches drawn (more than steps when some were skipped): the index of the next batch."""
    skipped: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best_val_loss: float | None = None
    best_step: int | None = None
    waited: int = 0
    """Validations since the last one that was enough of an improvement (`patience.note`)."""
    waited_from: float | None = None
    """Its validation loss."""
    loss_scale: float = 0.0
    """Of float16; 0: not begun."""
    since_overflow: int = 0
    """Finite steps since the scale last changed."""
    overflows: int = 0
    """Steps that float16 left out."""
    spikes: int = 0
    """Spikes met."""
    skipped_spikes: int = 0
    """Those whose steps were left out."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the last accepted steps, where spikes are looked for."""
    recent_norms: list[float] = field(default_factory=list)
    data_digest: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first, whether or not they verify."""
    return sorted((path for path in root.glob("step-*") if path.is_dir()), key=lambda path: (step_of(path), path.name))


def save_checkpoint(
    root: Path, state: State, write_model: Callable[[Path], None], optimizer_state: dict[str, Tensor]
) -> Path:
    """Write the checkpoint of `state.step` under `root` and give its folder.

    Raises CheckpointError naming path and bytes when the disk is full (older checkpoints stay, no leftover), and
    NonFiniteError rather than write a weight that is not finite.
    """
    target = root / folder_name(state.step)
    scratch = root / f".new-{target.name}-{os.getpid()}"
    need = 3 * sum(t.numel() * t.dtype.itemsize for t in optimizer_state.values()) // 2 + SPARE_BYTES
    try:
        root.mkdir(parents=True, exist_ok=True)
        clear_scratch(root)
        check_space(target, need)
        scratch.mkdir()
        write_model(scratch)
        check_finite(scratch)
        write_safetensors(scratch / OPTIMIZER, optimizer_state)
        write_state(scratch, state)
        fsync_tree(scratch)
        lineage.write_card(scratch, "checkpoint", {"data": state.data_digest}, state.config)
        swap_in(scratch, target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise unwritten(target, error, need) from None
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target


def check_space(target: Path, need: int) -> None:
    """Raise CheckpointError where less than `need` bytes are free."""
    free = shutil.disk_usage(target.parent).free
    if free < need:
        raise CheckpointError(f"{target}: needs about {need} bytes, {free} are free; free some space and run again")


def write_state(folder: Path, state: State) -> None:
    (folder / STATE).write_text(strict_json({"format": FORMAT, **asdict(state)}), encoding="utf-8")


def unwritten(target: Path, error: OSError, need: int = 0) -> CheckpointError:
    """What the system's refusal means for the checkpoint at `target`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f" (about {need} bytes needed)" if need else ""
        return CheckpointError(
            f"{target}: the disk is full{needed}; earlier checkpoints are untouched, free some space and run again"
        )
    return CheckpointError(f"{target}: can't be written ({error.strerror}); earlier checkpoints are untouched")


def swap_in(scratch: Path, target: Path) -> None:
    """Rename a finished folder to its name, for good; one that stands there goes."""
    away = set_aside(target) if target.exists() else None
    try:
        lineage.rename(scratch, target)
    except OSError:
        if away is not None:
            os.replace(away, target)
        raise
    lineage.fsync_folder(target.parent)
    if away is not None:
        shutil.rmtree(away, ignore_errors=True)


def check_finite(folder: Path) -> None:
    """Raise NonFiniteError if a written weight is NaN or infinite."""
    for path in folder.glob("*model*.safetensors"):
        with SafetensorsFile(path) as file:
            for names in together({name: entry.n_bytes for name, entry in file.entries.items()}):
                refuse_non_finite({name: file.read(name) for name in names})


def refuse_non_finite(weights: dict[str, Tensor]) -> None:
    """Raise NonFiniteError naming the first weight that is NaN or infinite."""
    weights = {name: tensor for name, tensor in weights.items() if tensor.numel()}
    largest = torch._foreach_norm(list(weights.values()), math.inf) if weights else ()
    for name, value in zip(weights, largest, strict=True):
        if not math.isfinite(value.item()):
            raise NonFiniteError(f"{name}: not finite; the checkpoint was not written")


def fsync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    lineage.fsync_folder(folder)


def newest_valid(root: Path, ranks: Ranks = ALONE) -> tuple[Path, State] | None:
    """The newest checkpoint that verifies, or None if there is none at all. Each of `ranks` reads a share of the files,
    and all get the same.

    Damaged ones are named in a warning and passed over. Raises CheckpointError when all are: nothing is
    deleted.
    """
    folders = [root / name for name in ranks.exchange([path.name for path in list_checkpoints(root)])[0]]
    damaged = 0
    for folder in reversed(folders):
        try:
            state = State(**Team(ranks).all(partial(read_fields, folder, ranks))[0])
        except CheckpointError as error:
            damaged += 1
            warn(f"checkpoint {folder.name} is damaged and passed over ({damaged} so far): {error}")
            continue
        return folder, state
    if folders:
        raise CheckpointError(
            f"{root}: all {len(folders)} checkpoints are damaged; restore one or start in another run.dir. "
            "Nothing was deleted"
        )
    return None


def read_fields(folder: Path, ranks: Ranks) -> dict[str, Any]:
    return asdict(read_state(folder, ranks))


def read_state(folder: Path, ranks: Ranks = ALONE) -> State:
    """Verify every digest (this rank's share of them), then read the state. Raises CheckpointError."""
    refuse_unlisted(folder, lineage.verify(folder, (ranks.rank, ranks.size)))
    try:
        raw = json.loads((folder / STATE).read_text(encoding="utf-8"))
        found = raw.pop("format")
    except (OSError, ValueError, KeyError, AttributeError):
        raise CheckpointError(f"{folder / STATE}: damaged state") from None
    if found != FORMAT:
        raise CheckpointError(f"{folder / STATE}: expected format {FORMAT}, got {found}; use the fledge that wrote it")
    try:
        return State(**raw)
    except TypeError:
        raise CheckpointError(f"{folder / STATE}: expected the fields of format {FORMAT}, got others") from None


def refuse_unlisted(folder: Path, card: dict[str, Any]) -> None:
    """Raise CheckpointError for a shard that the card doesn't know: whoever reads all shards would take it in."""
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in card["files"]:
            raise CheckpointError(f"{path}: a file that {lineage.CARD} knows nothing of; remove it")


def mark_best(root: Path, step: int, val_loss: float) -> None:
    """Raises CheckpointError if the mark can't be written."""
    text = strict_json({"checkpoint": folder_name(step), "step": step, "val_loss": val_loss})
    try:
        lineage.write_text_durably(root / BEST, text)
    except OSError as error:
        raise unwritten(root / BEST, error) from None


def mend_best(root: Path, state: State) -> None:
    """Mark the best checkpoint again, where a kill came between writing and marking it."""
    if state.best_step is None or state.best_val_loss is None:
        return
    name = folder_name(state.best_step)
    if best_name(root) != name and (root / name).is_dir():
        mark_best(root, state.best_step, state.best_val_loss)


def strict_json(value: dict[str, Any]) -> str:
    return json.dumps(json_safe(value), indent=1, allow_nan=False) + "\n"


def best_name(root: Path) -> str | None:
    try:
        return str(json.loads((root / BEST).read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_best(root: Path) -> tuple[int | None, float | None]:
    """Step and validation loss of the checkpoint that is marked as the best; None where none is."""
    try:
        best = json.loads((root / BEST).read_text(encoding="utf-8"))
        return int(best["step"]), float(best["val_loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def prune(root: Path, keep_last: int, keep_every_steps: int = 0, ranks: Ranks = ALONE) -> None:
    """Delete all but the newest `keep_last`, the best and those of every `keep_every_steps`-th step. The newest is read
    again first, by each of `ranks` a share: if it does not verify, nothing is deleted. A delete that fails is a
    warning, never the end of the training."""
    folders = list_checkpoints(root)
    kept = {best_name(root), *(path.name for path in folders if is_milestone(path, keep_every_steps))}
    doomed = [path for path in folders[:-keep_last] if path.name not in kept]
    newest = ranks.exchange(folders[-1].name if doomed else "")[0]
    if not newest:
        return
    try:
        Team(ranks).all(lambda: lineage.verify(root / newest, (ranks.rank, ranks.size))["digest"])
    except CheckpointError as error:
        warn(f"the newest checkpoint does not verify, so none is deleted: {error}")
        return
    for path in doomed if ranks.rank == 0 else ():
        try:
            shutil.rmtree(set_aside(path))
        except OSError as error:
            warn(f"checkpoint {path.name} could not be deleted ({error.strerror}); training goes on")


def is_milestone(path: Path, every_steps: int) -> bool:
    step = step_of(path)
    return bool(every_steps) and step >= 0 and step % every_steps == 0


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name; -1 for a name that holds none."""
    step = path.name.removeprefix("step-")
    return int(step) if step.isdecimal() else -1


def set_aside(path: Path) -> Path:
    """Rename a folder that is to go: half of it deleted must not look like a checkpoint."""
    away = path.with_name(f".old-{path.name}-{os.getpid()}")
    os.replace(path, away)
    return away


def clear_scratch(root: Path) -> None:
    """Remove what a killed process left half-written or half-deleted (the run lock says nobody else is at it)."""
    for pattern in (".new-*", ".old-*"):
        for path in root.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    for path in root.glob(f".{BEST}.tmp-*"):
        if path.name != f".{BEST}.tmp-{os.getpid()}":
            with suppress(OSError):
                path.unlink()
