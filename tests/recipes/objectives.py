"""Recipes of every objective over small models and shards in memory."""

from __future__ import annotations

from pathlib import Path

from fledge.config import from_dict
from fledge.data.shards import Dataset, Shard
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.recipes.config import PretrainConfig
from fledge.recipes.language import LanguageRecipe
from fledge.recipes.objective import objective_model, objective_shape, objective_tokenizer
from fledge.recipes.pretrain import objective_recipe, resolve_shape
from tests.data.corrupted import stories, wordpiece

FAMILIES = {
    "masked": "bert",
    "masked+next": "bert",
    "masked+order": "albert",
    "spans": "t5",
    "denoise": "bart",
    "prefix": "t5",
    "causal": "gpt2",
}


def config_of(objective: str, family: str = "", **more: object) -> PretrainConfig:
    """A small model; `more` are whole sections of the config."""
    family = family or FAMILIES[objective]
    raw = {
        "objective": objective,
        "model": {"family": family, "width": 32, "layers": 2, "heads": 2, "context_tokens": 48},
        "train": {"rows": 8, "steps": 4, "device": "cpu", "threads": 1},
        **({"infill": {"rate": 0.5}} if objective == "causal" else {}),
    }
    for key, value in more.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value  # type: ignore[dict-item]
    return from_dict(PretrainConfig, raw)


def recipe_of(config: PretrainConfig, train: Shard | None = None, val: Shard | None = None) -> LanguageRecipe:
    """The recipe that `pretrain` would train, on shards of stories where none are given."""
    train = train or stories(9, 40)
    dataset = Dataset(Path("."), train, val or train, wordpiece(), {"digest": "none"})
    tokenizer = objective_tokenizer(config, dataset.tokenizer)
    shape = resolve_shape(objective_shape(config), tokenizer)
    model = initialise(build(objective_model(config, shape), "cpu"), config.train.seed)
    return objective_recipe(config, dataset, tokenizer, model, config.train.row_tokens or shape.context_tokens)
