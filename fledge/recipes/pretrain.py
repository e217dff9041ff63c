"""`fledge pretrain`: a language model from initial weights, by the objective that the config names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.data.batches import TextBatches, windows
from fledge.data.build import check_text_path, from_text_path
from fledge.data.infill_batches import InfillBatches
from fledge.data.shards import Dataset, open_shards
from fledge.errors import ConfigError
from fledge.log import RunLog
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family, over_preset
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.nn.block import Block, InputLayer
from fledge.recipes.config import PretrainConfig
from fledge.recipes.denoise import denoise_recipe
from fledge.recipes.language import BatchSource, LanguageRecipe, row_tokens_of
from fledge.recipes.masked import masked_recipe
from fledge.recipes.objective import MASKED, objective_model, objective_shape, objective_tokenizer
from fledge.recipes.sample import sample_hook
from fledge.recipes.session import run_recipe
from fledge.text.tokenizer import Tokenizer
from fledge.train.lock import RunLock
from fledge.train.recipe import Hook, Recipe

DATA = "data"  # of the run folder: shards made from raw text


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train, or go on training, and publish `run.dir`/model.

    Gives `val_loss` (nats a token over all of the held-out text), `steps`, `tokens`, `seconds`, and the model's folder.
    """
    if not config.data.path:
        raise ConfigError("data.path: expected a dataset folder, a folder of text or a text file; set data.path=…")
    check_text_path(config.data.path, config.data.tokenizer or "bytes", Path(config.run.dir) / DATA)
    shape = objective_shape(config)
    sketch = objective_model(config, shaped(shape, shape.vocab_size or 1))  # what can't be is refused before the work
    row_tokens_of(config.train, sketch.context_tokens)
    with RunLock(config.run.dir):  # from here on: raw text becomes shards inside the run folder
        return pretrain_on(config, open_dataset(config, Path(config.run.dir)))


def pretrain_on(config: PretrainConfig, dataset: Dataset) -> dict[str, Any]:
    """`pretrain` on an opened dataset, in a run folder that the caller has locked."""
    tokenizer = objective_tokenizer(config, dataset.tokenizer)
    model_config = objective_model(config, resolve_shape(objective_shape(config), tokenizer))
    family(model_config.family).write(model_config)  # refused now if these ids can't be saved, not at a checkpoint
    row_tokens = row_tokens_of(config.train, model_config.context_tokens)

    def make_recipe(load: Callable[[], Transformer] | None) -> LanguageRecipe:
        fresh = load or (lambda: initialise(build(model_config, "cpu"), config.train.seed))
        return objective_recipe(config, dataset, tokenizer, with_dropout(fresh(), config.model.dropout), row_tokens)

    def make_hooks(recipe: Recipe, log: RunLog) -> Sequence[Hook]:
        if not config.train.sample_every_steps:
            return ()
        start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        ids = start + tokenizer.encode(config.sample.prompt)
        ids = ids or dataset.val.tokens[:1].tolist()
        every = config.train.sample_every_steps
        return [sample_hook(recipe.model, tokenizer, ids, config.sample, log, every)]

    return run_recipe(config, model_config, make_recipe, make_hooks, dataset.digest)


def objective_recipe(
    config: PretrainConfig, dataset: Dataset, tokenizer: Tokenizer, model: Transformer, row_tokens: int
) -> LanguageRecipe:
    """The recipe of `config.objective` for a model that it can train."""
    if config.objective != "causal":
        make = masked_recipe if config.objective in MASKED else denoise_recipe
        return make(config, dataset, tokenizer, model, row_tokens, evaluation_rows(row_tokens))
    crossing, train = config.data.cross_documents, config.train
    held_out = windows(dataset.val, row_tokens, evaluation_rows(row_tokens), crossing)
    source: BatchSource = TextBatches(dataset.train, row_tokens, train.rows, train.seed, crossing)
    if config.infill.rate:
        source = InfillBatches(dataset.train, tokenizer, config.infill, row_tokens, train.rows, train.seed, crossing)
    parents = {"data": dataset.card["digest"], "tokenizer": tokenizer.digest}
    return LanguageRecipe(model, tokenizer, source, held_out, dataset.digest, parents)


def open_dataset(config: PretrainConfig, run_folder: Path) -> Dataset:
    """The dataset folder at `data.path`, its shards as they were built, or shards made from raw text under the run
    folder."""
    data, path = config.data, Path(config.data.path)
    if (path / "train.bin").is_file():
        if data.tokenizer:
            raise ConfigError("data.tokenizer: a dataset folder brings its own tokenizer; leave it out")
        dataset = open_shards(path)
        if not config.train.allow_changes:
            dataset.check()
        return dataset
    return from_text_path(path, data.tokenizer or "bytes", data.val_fraction, run_folder / DATA)


def resolve_shape(shape: ShapeConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The ModelConfig of a new model: preset, then the fields that were set, vocabulary and ids from the tokenizer.

    Raises ConfigError for a shape that can't be built or whose family's folder format can't hold it.
    """
    vocab_size = shape.vocab_size or tokenizer.vocab_size
    if vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size: expected at least the tokenizer's {tokenizer.vocab_size}, got {vocab_size}"
        )
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    config = shaped(shape, vocab_size)
    return replace(config, special_ids={role: i for role, i in ids.items() if i is not None})


def shaped(shape: ShapeConfig, vocab_size: int) -> ModelConfig:
    """The ModelConfig of a new model with `vocab_size` entries."""
    shape = replace(over_preset(shape), vocab_size=vocab_size)
    own_family = family(shape.family)
    config = own_family.new_config(shape)
    own_family.write(config)  # a model that can't be saved is refused now, not at the first checkpoint
    return config


def with_dropout(model: Transformer, dropout: float) -> Transformer:
    """Set the dropout of a loaded model: config.json does not carry it."""
    for module in model.modules():
        if isinstance(module, Block | InputLayer):
            module.dropout = dropout
    config = model.config
    encoder, decoder = (s and replace(s, dropout=dropout) for s in (config.encoder, config.decoder))
    model.config = replace(config, encoder=encoder, decoder=decoder)
    return model


def evaluation_rows(row_tokens: int) -> int:
    """Rows of a validation batch: about 8,192 tokens at once."""
    return max(1, 8192 // row_tokens)
