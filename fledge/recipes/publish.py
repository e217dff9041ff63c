"""The published model of a run: written beside, carded, swapped in; mended where a kill came in between."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from fledge import device as devices
from fledge import lineage
from fledge.config import to_dict
from fledge.errors import CheckpointError
from fledge.log import json_safe
from fledge.model.folder import config_json
from fledge.train.checkpointing import fsync_tree
from fledge.train.faults import Faults
from fledge.train.loop import Run

MODEL = "model"
NEW, OLD = ".new-model-", ".old-model-"


def publish(folder: Path, run: Run, result: dict[str, Any]) -> Path:
    """Write `model/` beside and swap it in, under the run's lock.

    A reader sees the old folder, the new one or, for a moment between two renames, none; `mend` brings the old one back
    if the process dies in that moment. Raises CheckpointError if the folder can't be written; the old one then stays.
    """
    target, scratch = folder / MODEL, folder / f"{NEW}{os.getpid()}"
    try:
        getattr(run.recipe, "export", run.recipe.save)(scratch)  # without what only checkpoints need
        fsync_tree(scratch)
        write_model_card(scratch, run, result)
        if target.exists():
            os.replace(target, folder / f"{OLD}{os.getpid()}")
        if Faults().due("kill", "publish"):
            os._exit(137)
        os.replace(scratch, target)
        lineage.fsync_folder(folder)
    except OSError as error:
        raise CheckpointError(
            f"{target}: can't be written ({error.strerror}); the checkpoints are untouched, mend it and run again"
        ) from None
    finally:
        mend(folder)
    return target


def write_model_card(scratch: Path, run: Run, result: dict[str, Any]) -> None:
    recipe = run.recipe
    parents = {"data": recipe.data_digest, **getattr(recipe, "parents", {})}
    facts = {"steps": result["steps"], "data_digest": recipe.data_digest, "config": to_dict(run.config),
             "result": result, "machine": devices.facts(run.device)}  # fmt: skip
    shape = config_json(recipe.model.config, recipe.model.embedding.weight.dtype)
    lineage.write_card(scratch, getattr(recipe, "kind", "model"), parents, shape, json_safe(facts))


def mend(folder: Path) -> None:
    """Bring back a model that was set aside for one that never came, and remove what was left half-written or
    half-deleted, by whichever process (the run lock says nobody else is at it)."""
    away = sorted(folder.glob(f"{OLD}*"), key=lambda path: path.stat().st_mtime)
    if away and not (folder / MODEL).exists():
        os.replace(away.pop(), folder / MODEL)
    for path in (*away, *folder.glob(f"{NEW}*")):
        shutil.rmtree(path, ignore_errors=True)
