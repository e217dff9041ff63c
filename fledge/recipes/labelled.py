"""What every task of `finetune` shares: its rows, their digest, and the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.data.task_rows import Example, read_examples, split_held_out
from fledge.errors import ConfigError
from fledge.lineage import sha256_file
from fledge.log import say
from fledge.model.config import ModelConfig
from fledge.model.transformer import Transformer
from fledge.recipes.dropout import with_dropout
from fledge.recipes.finetune_config import FinetuneConfig
from fledge.recipes.language import LanguageRecipe
from fledge.recipes.session import in_run_folder, run_recipe
from fledge.recipes.sft import Tuned
from fledge.text.tokenizer import Tokenizer
from fledge.tune.attach import trained_parameters
from fledge.tune.freeze import freeze_parts

PREDICTIONS = "predictions.jsonl"


def check_named(config: FinetuneConfig) -> None:
    """Raises ConfigError for what must be named."""
    if not config.model.path:
        raise ConfigError("model.path: expected a model folder; set model.path=…")
    if not config.data.path:
        raise ConfigError("data.path: expected a file of labelled rows; set data.path=…")


def rows_of(config: FinetuneConfig) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples. Raises DataError."""
    training = read_examples(config.data.path, config.task, config.data)
    if config.data.val:
        return training, read_examples(config.data.val, config.task, config.data)
    return split_held_out(training, config.data.val_fraction, config.train.seed)


def data_digest(config: FinetuneConfig, base: Path, tokenizer: Tokenizer) -> str:
    """Digest of the rows, of the tokenizer that reads them and of the base model's folder."""
    digest = hashlib.sha256(tokenizer.digest.encode())
    for name in (config.data.path, config.data.val):
        digest.update(sha256_file(name).encode() if name else b"-")
    for path in (base / "config.json", *sorted(base.glob("*.safetensors"))):
        digest.update(sha256_file(path).encode())
    return digest.hexdigest()


def run_tuned(
    config: FinetuneConfig,
    model_config: ModelConfig,
    digest: str,
    first: Callable[[], Transformer],
    adapter: Tuned | None,
    make: Callable[[Transformer], LanguageRecipe],
    scored: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """The run of a recipe that `make` makes of the model, which is `first()` or the adapter's at its begin. Gives its
    result and what `scored()` says of the published folder."""

    def make_recipe(load: Callable[[], Transformer] | None) -> LanguageRecipe:
        model = with_dropout((load or first)(), 0.0, config.train.dropout)
        if config.tune.freeze:
            freeze_parts(model, config.tune.freeze)
        recipe = make(model)
        if not config.tune.trains_all:
            all_of_them = sum(parameter.numel() for parameter in model.parameters())
            say(f"{config.tune.method}: {trained_parameters(model):,} of {all_of_them:,} parameters are trained")
        return recipe if adapter is None else replace(recipe, writes=adapter.write, kind="adapter")

    with in_run_folder(config) as group:
        read = None if adapter is None else adapter.go_on
        result = run_recipe(config, model_config, make_recipe, lambda recipe, log: (), digest, group, read)
        return result | scored() if group.rank == 0 else result
