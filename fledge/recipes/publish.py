"""The published model of a run: written beside, carded, swapped in; mended where a kill came in between."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from fledge import device as devices
from fledge import lineage
from fledge.config import read_yaml, to_dict
from fledge.errors import CheckpointError, ConfigError
from fledge.log import json_safe
from fledge.model.folder import config_json
from fledge.train.checkpointing import fsync_tree
from fledge.train.faults import Faults
from fledge.train.loop import Run

MODEL = "model"
NEW, OLD = ".new-model-", ".old-model-"
LOG_BEGINS = '{"kind": '  # every line of log.jsonl


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


def refuse_strangers(folder: Path) -> None:
    """Raises ConfigError for files where a run writes its own, in a folder without its checkpoints, that no run wrote:
    they would be replaced."""
    if (folder / "checkpoints").is_dir():
        return
    tests = {MODEL: is_published, "log.jsonl": is_log, "run.yaml": is_run_config}
    there = [name for name, is_ours in tests.items() if (folder / name).exists() and not is_ours(folder / name)]
    if there:
        raise ConfigError(
            f"run.dir: expected a folder for a run, got {folder} with {', '.join(there)} that no run wrote; choose "
            "another, or move what is there"
        )


def is_published(model: Path) -> bool:
    """Whether a folder has a card, whatever became of the files; an empty one may be written to."""
    return model.is_dir() and ((model / lineage.CARD).is_file() or not any(model.iterdir()))


def is_log(path: Path) -> bool:
    """By the first line, which a crash may have cut."""
    try:
        with open(path, encoding="utf-8") as file:
            line = file.readline()
        if not line.endswith("\n"):
            return line[: len(LOG_BEGINS)] == LOG_BEGINS[: len(line)]
        event = json.loads(line)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(event, dict) and "kind" in event


def is_run_config(path: Path) -> bool:
    """Whether it is a training verb's YAML, ours or the one that the run is begun with."""
    try:
        return "train" in read_yaml(path)
    except (ConfigError, OSError):
        return False


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
