"""`fledge align dpo`: from preferences, without a reward model; of all weights, or of an adapter's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fledge import device as devices
from fledge.data.keyed_batches import EveryRow
from fledge.data.preference_batches import PreferenceBatches
from fledge.lineage import artefact_digest, sha256_json
from fledge.log import RunLog, say
from fledge.model.folder import load_model
from fledge.model.transformer import Transformer
from fledge.parallel.group import Group
from fledge.recipes.dropout import with_dropout
from fledge.recipes.language import row_tokens_of
from fledge.recipes.preference_config import AlignConfig
from fledge.recipes.preference_data import Items, judged, pairs
from fledge.recipes.preference_recipe import JudgedRecipe, PreferenceRecipe
from fledge.recipes.reference import reference_table
from fledge.recipes.sample import sample_hook
from fledge.recipes.session import check_whole_rows, in_run_folder, run_recipe
from fledge.recipes.sft import Tuned, check_writer, data_digest, opened_base, prompt_ids, tuned_by
from fledge.text.chat import renderer_for, with_format
from fledge.text.tokenizer import Tokenizer
from fledge.train.recipe import Hook, Recipe
from fledge.tune.attach import trained_parameters
from fledge.tune.freeze import freeze_parts
from fledge.tune.off import without_adapters


def align_dpo(config: AlignConfig) -> dict[str, Any]:
    """Train, or go on training, and publish `run.dir`/model: a model, or by tune.method an adapter folder. Gives the
    figures of the last validation and of the run.

    Raises ConfigError, DataError naming file and line, and CheckpointError where the reference of a run that goes on
    is not the one it began with."""
    base, base_config = opened_base(config, "preferences")
    check_writer(base_config, base)
    tokenizer = with_format(Tokenizer.load(base), config.chat.format)
    renderer = renderer_for(tokenizer)
    row_tokens = row_tokens_of(config.train, base_config.context_tokens)
    digest = data_digest(config, base, tokenizer)
    adapter = tuned_by(config.tune, base, config.train.seed, tokenizer, aside=True)
    read = reader_of(config)
    items = read(config.data, renderer, row_tokens + 1)

    def make_recipe(group: Group, load: Callable[[], Transformer] | None) -> PreferenceRecipe:
        fresh = load_model if adapter is None else adapter.begin
        model = load() if load else fresh(base)
        device = devices.pick(config.train.device, "float32", config.train.threads, group.place).device
        table = None
        if config.preference.has_reference:
            known = sha256_json([digest, row_tokens, config.data.too_long, config.data.val_fraction,
                                 read.__name__, config.train.precision])  # fmt: skip
            begun = load is not None and not config.train.allow_changes
            reference = as_base(model, base, whole=load is not None and adapter is None, device=device)
            table = reference_table(
                Path(config.run.dir), known, items.found, reference, config.train.precision, begun, group
            )
        model = with_dropout(model, 0.0, config.train.dropout)
        if config.tune.freeze:
            freeze_parts(model, config.tune.freeze)
        if not config.tune.trains_all:
            all_of_them = sum(parameter.numel() for parameter in model.parameters())
            say(f"{config.tune.method}: {trained_parameters(model):,} of {all_of_them:,} parameters are trained")
        recipe = recipe_of(config, model, tokenizer, items, digest, base, table, adapter)
        if isinstance(recipe, JudgedRecipe):
            recipe.readers = config.train.parallel.readers(group.world_size)
        return recipe

    def make_hooks(recipe: Recipe, log: RunLog) -> Sequence[Hook]:
        if not config.train.sample_every_steps:
            return ()
        ids = prompt_ids(renderer, config.sample.prompt)
        return [sample_hook(recipe, tokenizer, ids, config.sample, log, config.train.sample_every_steps)]

    with in_run_folder(config) as group:
        check_whole_rows(config.train)
        read_adapter = None if adapter is None else adapter.go_on
        return run_recipe(config, base_config, partial(make_recipe, group), make_hooks, digest, group, read_adapter)


def reader_of(config: AlignConfig) -> Callable[..., Items]:
    """What reads the rows of a file for the loss."""
    return judged if config.preference.loss == "kto" else pairs


def recipe_of(
    config: AlignConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    items: Items,
    digest: str,
    base: Path,
    table: torch.Tensor | None,
    adapter: Tuned | None,
) -> PreferenceRecipe:
    source, checks = preference_batches(config, items, tokenizer)
    recipe = (JudgedRecipe if config.preference.loss == "kto" else PreferenceRecipe)(
        model, tokenizer, source, EveryRow(checks), digest, {"base": artefact_digest(base)},
        settings=config.preference, reference=table, values=items.values,
    )  # fmt: skip
    if isinstance(recipe, JudgedRecipe):
        recipe = replace(recipe, precision=config.train.precision, checks=checks)
    return recipe if adapter is None else replace(recipe, writes=adapter.write, kind="adapter")


def preference_batches(
    config: AlignConfig, items: Items, tokenizer: Tokenizer
) -> tuple[PreferenceBatches, PreferenceBatches]:
    """Batches to train on and to validate on: pairs, or for kto each answer by itself."""
    rows, pad = config.train.rows, tokenizer.pad_id or 0
    answers = slice(0, 1) if config.preference.loss == "kto" else slice(0, 2)
    source = PreferenceBatches(items.training, rows, config.train.seed, pad, answers)
    return source, PreferenceBatches(items.held_out, rows, 0, pad, answers, first=items.n_training)


def as_base(
    model: Transformer, base: Path, whole: bool, device: torch.device
) -> Callable[[], AbstractContextManager[Transformer]]:
    """The reference on `device`: `model` itself with its adapters aside; with `whole`, where its own weights have moved
    on, one loaded anew and dropped afterwards."""

    @contextmanager
    def reference() -> Iterator[Transformer]:
        if whole:
            yield load_model(base, device)
        else:
            with without_adapters(model.to(device)):
                yield model

    return reference
