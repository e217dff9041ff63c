"""A training run in its folder, from lock to published model: what every training verb shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fledge import device as devices
from fledge import lineage
from fledge.config import to_dict
from fledge.errors import CheckpointError, ConfigError
from fledge.log import RunLog, json_safe, say
from fledge.model.config import InitConfig, ModelConfig
from fledge.model.folder import load_model, read_config
from fledge.model.generation import generation_file
from fledge.model.transformer import Transformer, build
from fledge.parallel.group import ALONE, Group, joined
from fledge.recipes.publish import MODEL, mend, publish, refuse_strangers
from fledge.train.autotune import MEMORY_SHARE, choose_micro_rows, memory_limit
from fledge.train.checkpointing import State
from fledge.train.config import TrainConfig
from fledge.train.dropout import draws_dropout
from fledge.train.lock import RunLock
from fledge.train.loop import Run, train
from fledge.train.ranks import ranks_of
from fledge.train.recipe import Hook, Recipe
from fledge.train.resume import changed_keys, changes, resume_point, rows_begun_with, with_defaults, write_run_yaml

WHAT_IS_PUBLISHED = ("publish_ema", "publish_best", "patience", "min_delta")  # free to change, of another result


def run_recipe(
    config: Any,
    model_config: ModelConfig,
    make_recipe: Callable[[Callable[[], Transformer] | None], Recipe],
    make_hooks: Callable[[Recipe, RunLog], Sequence[Hook]],
    data_digest: str,
    group: Group = ALONE,
    read: Callable[[Path, torch.device], Transformer] | None = None,
) -> dict[str, Any]:
    """Train in `config.run.dir`, which the caller has locked (`in_run_folder`), going on from its newest valid
    checkpoint, and publish `model/`.

    `make_recipe(load)` builds the recipe; `load` gives the checkpointed model when there is one, which must be of
    `model_config`; `read` reads one that is no model folder. A run that is finished under the same config is not
    repeated: its result is given back.
    """
    folder, settings = Path(config.run.dir), config.train
    group.once(lambda: mend(folder))
    finished = finished_result(folder, config, settings, data_digest)
    if finished is not None:
        say(f"{folder}: already trained, nothing to do")
        return finished
    device = devices.pick(settings.device, "float32", settings.threads, group.place)
    point = resume_point(folder, config, settings, data_digest, ranks_of(group))
    if point is None:
        if not settings.allow_changes:
            check_nothing_is_lost(folder)
        group.once(lambda: (folder / "log.jsonl").unlink(missing_ok=True))
        loaded, state = None, State()
    else:
        loaded, state = point
        if state.step > settings.steps:
            raise ConfigError(
                f"train.steps: expected at least the {state.step} steps that {folder} has done, got {settings.steps}; "
                f"use another run.dir, or the checkpoint itself ({loaded.name})"
            )
        say(f"{folder}: continuing from {loaded.name}")

    def load_at(checkpoint: Path) -> Transformer:
        if read is not None:
            return read(checkpoint, device.device)
        # several processes read their parts once the model is shared out
        model = load_model(checkpoint, device.device) if group.alone else build(read_config(checkpoint)[1])
        model.generation = generation_file(checkpoint) or {}
        return same_model(model, model_config, folder)

    recipe = make_recipe(None if loaded is None else partial(load_at, loaded))
    check_held_out(recipe, settings)
    if not recipe.model.embedding.weight.is_meta:
        recipe.model.to(device.device)
    if settings.micro_rows == "auto":
        begun_with = rows_begun_with(state, draws_dropout(recipe.model, settings))
        settings = replace(settings, micro_rows=begun_with or rows_that_fit(recipe, settings, device))
        config = replace(config, train=settings)
    log = RunLog(folder / "log.jsonl", device.rank, waits=settings.failed_save == "continue")
    log.truncate_after(state.step, state.drawn)
    group.once(lambda: write_run_yaml(folder, config, devices.facts(device)))
    run = Run(folder, config, settings, device, recipe, log, make_hooks(recipe, log), loaded, group, load_at)
    try:
        result: dict[str, Any] = json_safe(train(run, state))
    finally:
        log.close()
    group.once(lambda: publish(folder, run, result))
    return {**result, "model": str(folder / MODEL)}


@contextmanager
def in_run_folder(config: Any) -> Iterator[Group]:
    """The processes of a run, with its folder locked by rank 0, which alone writes there. See `joined`."""
    with (
        joined(config.train.parallel, config.train.device) as group,
        RunLock(config.run.dir) if group.rank == 0 else nullcontext(),
    ):
        group.once(lambda: refuse_strangers(Path(config.run.dir)))
        yield group


def check_whole_rows(train: TrainConfig) -> None:
    """Raises ConfigError for processes that share a row: losses of whole answers need all of its numbers in one."""
    for axis in ("tensor", "pipe"):
        if getattr(train.parallel, axis) > 1:
            raise ConfigError(
                f"train.parallel.{axis}: expected 1 to learn from answers, whose log-probabilities and rewards are "
                f"taken in one process, got {getattr(train.parallel, axis)}; use data or shard"
            )


def check_nothing_is_lost(folder: Path) -> None:
    """Raises CheckpointError for a folder that published a model and has no checkpoint of it to go on from."""
    try:
        lineage.verify(folder / MODEL)
    except CheckpointError:
        return
    raise CheckpointError(
        f"{folder}: expected checkpoints of the run that published {MODEL}/, got none: training would begin anew and "
        "write over it; use another run.dir, or train.allow_changes=true to do so all the same"
    )


def check_held_out(recipe: Recipe, train: TrainConfig) -> None:
    """Raises ConfigError where the best weights are asked for and nothing is held out to tell them by."""
    sources = [source.batches for source in getattr(recipe, "sources", ())] or [getattr(recipe, "held_out", None)]
    if train.keeps_best and all(batches is not None and not len(batches) for batches in sources):
        key = "patience" if train.patience else "publish_best"
        raise ConfigError(f"train.{key}: expected held-out data to choose the best weights by, got none; hold some out")


def rows_that_fit(recipe: Recipe, settings: TrainConfig, device: devices.Device) -> int:
    """train.micro_rows=auto as a number."""
    tried = choose_micro_rows(recipe, settings, device, memory_limit(recipe, device, MEMORY_SHARE))[-1]
    say(f"micro_rows {tried.micro_rows} of {settings.rows} rows: {tried.measured or 0:,} bytes measured")
    return tried.micro_rows


def same_model(model: Transformer, wanted: ModelConfig, folder: Path) -> Transformer:
    """The checkpointed model. Raises CheckpointError if it is not the one that today's config describes, which no
    setting can change into it; dropout and initial weights aside."""
    changed = changed_keys(to_dict(at_rest(model.config)), to_dict(at_rest(wanted)), "model")
    if changed:
        shown = "; ".join(change[:160] for change in changed[:4])
        raise CheckpointError(f"{folder}: holds another model ({shown}); use another run.dir, or the config it had")
    return model


def at_rest(config: ModelConfig) -> ModelConfig:
    """What of a config the weights depend on."""
    encoder, decoder = (stack and replace(stack, dropout=0.0) for stack in (config.encoder, config.decoder))
    return replace(config, init=InitConfig(), encoder=encoder, decoder=decoder)


def finished_result(folder: Path, config: Any, settings: TrainConfig, data_digest: str) -> dict[str, Any] | None:
    """The result of a finished run of this config on this data, or None."""
    try:
        card = lineage.verify(folder / "model")
        facts = card["facts"]
        early = facts["result"].get("stopped_early") and facts["steps"] <= settings.steps
        if settings.allow_changes or facts["data_digest"] != data_digest:
            return None
        before = with_defaults(facts["config"], config)
        if changes(before, to_dict(config)) or not (early or facts["steps"] == settings.steps):
            return None
        if any(before["train"][name] != getattr(settings, name) for name in WHAT_IS_PUBLISHED):
            return None
        return {**facts["result"], "model": str(folder / "model")}
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return None
