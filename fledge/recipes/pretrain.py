"""`fledge pretrain`: a language model from initial weights, by the objective that the config names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fledge.compress.prune import hold_zeros
from fledge.data.batches import TextBatches, windows
from fledge.data.build import check_text_path, from_text_path
from fledge.data.infill_batches import InfillBatches
from fledge.data.mixed_batches import RowSource
from fledge.data.mixture import Mixture, Source, plan_lines
from fledge.data.shards import Dataset, Shard, open_shards
from fledge.errors import ConfigError, DataError
from fledge.lineage import artefact_digest, sha256_json
from fledge.log import RunLog, say
from fledge.model.config import ModelConfig, ShapeConfig
from fledge.model.families import family, over_preset
from fledge.model.folder import config_of, find_model, load_model, read_config
from fledge.model.init import initialise
from fledge.model.quantization import read_quantization
from fledge.model.transformer import Transformer, build
from fledge.parallel.group import ALONE, Group
from fledge.recipes.config import PretrainConfig
from fledge.recipes.denoise import denoise_reading
from fledge.recipes.dropout import with_dropout
from fledge.recipes.language import LanguageRecipe, row_tokens_of
from fledge.recipes.masked import MaskedRecipe, masked_reading, relation_of
from fledge.recipes.objective import MASKED, objective_model, objective_shape, objective_tokenizer
from fledge.recipes.reading import Data, Reading, mixed
from fledge.recipes.sample import sample_hook
from fledge.recipes.session import in_run_folder, run_recipe, same_model
from fledge.text.tokenizer import Tokenizer
from fledge.train.recipe import Hook, Recipe

DATA = "data"  # of the run folder: shards made from raw text
TRAIN = "train.bin"  # what tells a dataset folder from raw text


@dataclass(frozen=True)
class Beside:
    """What makes another training of a pre-training: `recipe` makes its recipe of the objective's, `also` is the digest
    of what that one reads too, `read` adds what a checkpoint keeps beside the model to the model, `hooks` are more of
    them."""

    recipe: Callable[[LanguageRecipe], LanguageRecipe] = lambda recipe: recipe
    also: str = ""
    read: Callable[[Transformer, Path], Transformer] = lambda model, _: model
    hooks: Callable[[Recipe, RunLog], Sequence[Hook]] = lambda recipe, log: ()


NOTHING = Beside()


def fresh_recipe(config: PretrainConfig, folder: Path) -> LanguageRecipe:
    """The recipe of a run that has not begun, on its initial weights, for trials; shards made from raw text go to
    `folder`. Raises what `pretrain` raises before it trains."""
    check_config(config, folder)
    prepare_data(config, folder)
    data = open_data(config, folder)
    tokenizer = objective_tokenizer(config, data.tokenizer)
    model_config = first_config(config, tokenizer)
    row_tokens = row_tokens_of(config.train, model_config.context_tokens)
    model = first_model(config, model_config)
    return objective_recipe(
        config, data, tokenizer, with_dropout(model, config.model.dropout, config.train.dropout), row_tokens
    )


def pretrain(config: PretrainConfig, beside: Beside = NOTHING) -> dict[str, Any]:
    """Train, or go on training, and publish `run.dir`/model.

    Gives `val_loss` (nats a token over all of the held-out text), `steps`, `tokens`, `seconds`, and the model's folder.
    """
    check_config(config, Path(config.run.dir))
    with in_run_folder(config) as group:  # from here on: raw text becomes shards inside the run folder
        group.once(lambda: prepare_data(config, Path(config.run.dir)))
        if config.keep_zeros and not group.alone:
            raise ConfigError("train: expected one process with keep_zeros, got several; start one")
        if beside is not NOTHING and not group.alone:
            raise ConfigError("train: expected one process for a student beside its teacher, got several; start one")
        return pretrain_on(config, open_data(config, Path(config.run.dir)), group, beside)


def check_config(config: PretrainConfig, folder: Path) -> None:
    """What can't be is refused before the work."""
    if not config.data.path and not config.data.mixture:
        raise ConfigError("data.path: expected a dataset folder, a folder of text or a text file; set data.path=…")
    if config.data.path:
        check_text_path(config.data.path, tokenizer_source(config), folder / DATA)
    if config.init_from:
        sketch = objective_model(config, config_to_go_on_from(config))
    else:
        shape = objective_shape(config)
        sketch = objective_model(config, shaped(shape, shape.vocab_size or 1))
    row_tokens_of(config.train, sketch.context_tokens)


def pretrain_on(config: PretrainConfig, data: Data, group: Group = ALONE, beside: Beside = NOTHING) -> dict[str, Any]:
    """`pretrain` on opened data, in a run folder that the caller has locked."""
    tokenizer = objective_tokenizer(config, data.tokenizer)
    model_config = first_config(config, tokenizer)
    family(model_config.family).write(model_config)  # refused now if these ids can't be saved, not at a checkpoint
    row_tokens = row_tokens_of(config.train, model_config.context_tokens)
    digest = sha256_json([run_digest(config, data), beside.also]) if beside.also else run_digest(config, data)

    def make_recipe(load: Callable[[], Transformer] | None) -> LanguageRecipe:
        fresh = load or (lambda: first_model(config, model_config))
        model = with_dropout(fresh(), config.model.dropout, config.train.dropout)
        if config.keep_zeros:
            hold_zeros(model)
        recipe = objective_recipe(config, data, tokenizer, model, row_tokens)
        recipe.data_digest = digest
        return beside.recipe(recipe)

    def make_hooks(recipe: Recipe, log: RunLog) -> Sequence[Hook]:
        if isinstance(recipe, LanguageRecipe) and recipe.plan:
            say("\n".join(plan_lines(recipe.plan)))
            log.write("mixture", sources=[vars(source) for source in recipe.plan])
        more = beside.hooks(recipe, log)
        if not config.train.sample_every_steps:
            return more
        start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        ids = start + tokenizer.encode(config.sample.prompt)
        ids = ids or (data.sources[0].dataset if isinstance(data, Mixture) else data).val.tokens[:1].tolist()
        every = config.train.sample_every_steps
        return [*more, sample_hook(recipe, tokenizer, ids, config.sample, log, every)]

    def read(checkpoint: Path, device: torch.device) -> Transformer:
        model = same_model(load_model(checkpoint, device), model_config, Path(config.run.dir))
        return beside.read(model, checkpoint)

    reader = None if beside is NOTHING else read
    return run_recipe(config, model_config, make_recipe, make_hooks, digest, group, reader)


def tokenizer_source(config: PretrainConfig) -> str:
    """What tokenises raw text: the tokenizer that is named, that of the model to go on from, or bytes."""
    return config.data.tokenizer or (str(find_model(config.init_from)) if config.init_from else "bytes")


def config_to_go_on_from(config: PretrainConfig) -> ModelConfig:
    """The model that training goes on from. Raises ConfigError for a shape or a tokenizer beside it, and for quantized
    weights."""
    folder = find_model(config.init_from)
    if config.model != replace(ShapeConfig(), dropout=config.model.dropout):
        raise ConfigError("model: expected no shape beside init_from, whose model has one; leave model.* out")
    if config.data.tokenizer:
        raise ConfigError("data.tokenizer: expected none beside init_from, whose model has one; leave it out")
    if read_quantization(config_of(folder)):
        raise ConfigError(
            f"init_from: expected weights in floating point, got quantized ones in {folder}; train the original"
        )
    return read_config(folder)[1]


def first_config(config: PretrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model that is trained, on text by `tokenizer`. Raises ConfigError and DataError where the model to go on
    from reads another one."""
    if not config.init_from:
        return objective_model(config, resolve_shape(objective_shape(config), tokenizer))
    found, own = config_to_go_on_from(config), Tokenizer.load(find_model(config.init_from))
    if objective_tokenizer(config, own).digest != tokenizer.digest:
        raise DataError(
            f"data: expected tokens of {config.init_from}'s tokenizer, got another's; build the dataset with "
            f"tokenizer={config.init_from}"
        )
    if tokenizer.vocab_size > found.vocab_size:
        raise ConfigError(
            f"objective: {config.objective} needs {tokenizer.vocab_size} tokens, the model of init_from has "
            f"{found.vocab_size}; give it more first (fledge.model.resize)"
        )
    return objective_model(config, found)


def first_model(config: PretrainConfig, model_config: ModelConfig) -> Transformer:
    """The model before its first step: initial weights, or those of `init_from`."""
    if not config.init_from:
        return initialise(build(model_config, "cpu"), config.train.seed)
    model = load_model(find_model(config.init_from))
    model.config = model_config
    return model


def run_digest(config: PretrainConfig, data: Data) -> str:
    """Of all that a run reads: its data, and the weights that it goes on from."""
    if not config.init_from:
        return data.digest
    return sha256_json([data.digest, artefact_digest(find_model(config.init_from))])


def objective_recipe(
    config: PretrainConfig, data: Data, tokenizer: Tokenizer, model: Transformer, row_tokens: int
) -> LanguageRecipe:
    """The recipe of `config.objective` for a model that it can train."""
    train, rows = config.train, evaluation_rows(row_tokens)
    make = causal_reading if config.objective == "causal" else denoise_reading
    reading = (masked_reading if config.objective in MASKED else make)(config, tokenizer, model.config, row_tokens)
    parents = data.parents | {"tokenizer": tokenizer.digest}
    if config.init_from:
        parents |= {"base": artefact_digest(find_model(config.init_from))}
    digest = run_digest(config, data)
    if isinstance(data, Mixture):
        source, sources, plan = mixed(reading, data, train, rows, tokenizer.pad_id or 0)
        recipe = LanguageRecipe(model, tokenizer, source, (), digest, parents, sources, plan)
    else:
        endless, held_out = reading.batches(data.train, train.rows, train.seed), reading.held_out(data.val, rows)
        recipe = LanguageRecipe(model, tokenizer, endless, held_out, digest, parents)
    if config.objective in MASKED:
        return MaskedRecipe(**vars(recipe), relation=relation_of(model.config, config.objective))
    return recipe


def causal_reading(config: PretrainConfig, tokenizer: Tokenizer, model: ModelConfig, row_tokens: int) -> Reading:
    """How a causal model reads a shard: in windows, as the text stands or with middles moved to the end."""
    crossing = config.data.cross_documents

    def batches(shard: Shard, rows: int, seed: int) -> RowSource:
        if config.infill.rate:
            return InfillBatches(shard, tokenizer, config.infill, row_tokens, rows, seed, crossing)
        return TextBatches(shard, row_tokens, rows, seed, crossing)

    return Reading(batches, lambda shard, rows: windows(shard, row_tokens, rows, crossing))


def prepare_data(config: PretrainConfig, run_folder: Path) -> None:
    """Make shards from raw text under the run folder, where they aren't there: by one process, as it writes."""
    path = Path(config.data.path)
    if not config.data.mixture and not (path / TRAIN).is_file():
        from_text_path(path, tokenizer_source(config), config.data.val_fraction, run_folder / DATA)


def open_data(config: PretrainConfig, run_folder: Path) -> Data:
    """The mixture, or the dataset folder at `data.path`, its shards as they were built, or what `prepare_data` made.
    Writes nothing: every process of a run does it."""
    data = config.data
    if data.mixture:
        folders = [(Path(source.path), f"data.mixture[{n}].path") for n, source in enumerate(data.mixture)]
        opened = [open_dataset(config, path, at) for path, at in folders]
        sources = (Source(source, dataset) for source, dataset in zip(data.mixture, opened, strict=True))
        return Mixture(tuple(sources), data.stages)
    path = Path(data.path)
    if (path / TRAIN).is_file():
        return open_dataset(config, path, "data.path")
    return open_shards(run_folder / DATA)


def open_dataset(config: PretrainConfig, path: Path, at: str) -> Dataset:
    """A dataset folder. Raises DataError if it is none or was changed since it was built."""
    if not (path / TRAIN).is_file():
        raise DataError(f"{at}: expected a dataset folder with shards, got {path}; make one with fledge data build")
    if config.data.tokenizer:
        raise ConfigError("data.tokenizer: a dataset folder brings its own tokenizer; leave it out")
    dataset = open_shards(path)
    if not config.train.allow_changes:
        dataset.check()
    return dataset


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


def evaluation_rows(row_tokens: int) -> int:
    """Rows of a validation batch: about 8,192 tokens at once."""
    return max(1, 8192 // row_tokens)
