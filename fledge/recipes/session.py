"""A training run in its folder, from lock to published model: what every training verb shares."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fledge import device as devices
from fledge import lineage
from fledge.config import to_dict
from fledge.errors import CheckpointError
from fledge.log import RunLog, say
from fledge.model.folder import config_json, load_model
from fledge.model.transformer import Transformer
from fledge.train.checkpointing import State
from fledge.train.config import TrainConfig
from fledge.train.lock import RunLock
from fledge.train.loop import Run, changed_keys, resume_point, train, write_run_yaml
from fledge.train.recipe import Hook, Recipe

RESULT = "result.json"


def run_recipe(
    config: Any,
    make_recipe: Callable[[Callable[[], Transformer] | None], Recipe],
    make_hooks: Callable[[Recipe, RunLog], Sequence[Hook]],
    data_digest: str,
) -> dict[str, Any]:
    """Train in `config.run.dir`, going on from its newest valid checkpoint, and publish `model/`.

    `make_recipe(load)` builds the recipe; `load` gives the checkpointed model when there is one. A run that is finished
    under the same config is not repeated: its result is given back.
    """
    folder, settings = Path(config.run.dir), config.train
    finished = finished_result(folder, config, settings, data_digest)
    if finished is not None:
        say(f"{folder}: already trained, nothing to do")
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        device = devices.pick(settings.device, threads=settings.threads)
        point = resume_point(folder, config, settings, data_digest)
        if point is None:
            (folder / "log.jsonl").unlink(missing_ok=True)
            loaded, state, load = None, State(), None
        else:
            loaded, state = point
            say(f"{folder}: continuing from {loaded.name}")
            checkpoint = loaded

            def load() -> Transformer:
                return load_model(checkpoint, device.device)

        recipe = make_recipe(load)
        recipe.model.to(device.device)
        log = RunLog(folder / "log.jsonl", device.rank)
        log.truncate_after(state.step)
        write_run_yaml(folder, config, devices.facts(device))
        run = Run(folder, config, settings, device, recipe, log, make_hooks(recipe, log), loaded)
        try:
            result: dict[str, Any] = dict(train(run, state))
        finally:
            log.close()
        result["model"] = str(publish(folder, run, result))
        return result


def finished_result(folder: Path, config: Any, settings: TrainConfig, data_digest: str) -> dict[str, Any] | None:
    """The result of a finished run of this config on this data, or None."""
    try:
        card = lineage.verify(folder / "model")
        facts = card["facts"]
        if settings.allow_changes or facts["steps"] != settings.steps or facts["data_digest"] != data_digest:
            return None
        if changed_keys(facts["config"], to_dict(config)):
            return None
        return {**facts["result"], "model": str(folder / "model")}
    except (CheckpointError, KeyError):
        return None


def publish(folder: Path, run: Run, result: dict[str, Any]) -> Path:
    """Write `model/` beside and swap it in: readers see the old folder or the new one."""
    target, scratch = folder / "model", folder / f".new-model-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    run.recipe.save(scratch)
    parents = {"data": run.recipe.data_digest, **getattr(run.recipe, "parents", {})}
    facts = {"steps": result["steps"], "data_digest": run.recipe.data_digest, "config": to_dict(run.config),
             "result": result, "machine": devices.facts(run.device)}  # fmt: skip
    model = run.recipe.model
    lineage.write_card(scratch, "model", parents, config_json(model.config, model.embedding.weight.dtype), facts)
    if target.exists():
        away = folder / f".old-model-{os.getpid()}"
        os.replace(target, away)
        os.replace(scratch, target)
        shutil.rmtree(away)
    else:
        os.replace(scratch, target)
    lineage.fsync_folder(folder)
    lineage.write_text_durably(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return target
