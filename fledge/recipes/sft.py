"""`fledge sft`: instruction tuning, loss on the assistant's tokens only; of all weights, or of an adapter's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fledge.batch import Batch
from fledge.data.batches import ChatBatches
from fledge.errors import ConfigError, DataError
from fledge.lineage import artefact_digest, sha256_file
from fledge.log import RunLog, say
from fledge.model.config import ModelConfig
from fledge.model.folder import config_of, find_model, load_model, read_config
from fledge.model.quantization import read_quantization
from fledge.model.transformer import Transformer
from fledge.recipes.config import SftConfig
from fledge.recipes.dropout import with_dropout
from fledge.recipes.language import LanguageRecipe, row_tokens_of
from fledge.recipes.sample import sample_hook
from fledge.recipes.session import in_run_folder, run_recipe
from fledge.text.chat import ChatRenderer, Message, read_conversations, render_all, renderer_for, with_format
from fledge.text.tokenizer import Tokenizer
from fledge.train.recipe import Hook, Recipe
from fledge.tune.attach import all_numbers, trained_parameters, tune
from fledge.tune.config import TuneConfig
from fledge.tune.folder import go_on, save_adapter
from fledge.tune.freeze import freeze_parts
from fledge.tune.spelled import spelled

SET_ASIDE = ("lora", "ia3")  # adapters without which the model is its base


class HeldOutChats(Sequence[Batch]):
    """Every packed row of held-out conversations once, some rows at a time."""

    def __init__(self, batches: ChatBatches):
        self.batches = batches

    def __len__(self) -> int:
        return -(-self.batches.rows_per_epoch // self.batches.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        first = index * self.batches.rows
        return self.batches.read(range(first, min(first + self.batches.rows, self.batches.rows_per_epoch)))


def sft(config: SftConfig) -> dict[str, Any]:
    """Tune, or go on tuning, and publish `run.dir`/model: a model, or by tune.method an adapter folder. Gives the
    same figures as `pretrain`."""
    base, base_config = opened_base(config, "conversations", config.tune.method != "full")
    check_writer(base_config, base)
    tokenizer = with_format(Tokenizer.load(base), config.chat.format)
    renderer = renderer_for(tokenizer)
    training, held_out = conversations(config)
    row_tokens = row_tokens_of(config.train, base_config.context_tokens - config.tune.virtual)
    digest = data_digest(config, base, tokenizer)

    adapter = tuned_by(config.tune, base, config.train.seed, tokenizer)

    def make_recipe(load: Callable[[], Transformer] | None) -> LanguageRecipe:
        fresh = load_model if adapter is None else adapter.begin
        model = with_dropout(load() if load else fresh(base), 0.0, config.train.dropout)
        if config.tune.freeze:
            freeze_parts(model, config.tune.freeze)
        source, checks = chat_batches(config, renderer, training, held_out, row_tokens)
        say(
            f"{len(training):,} conversations in about {source.rows_per_epoch:,} rows an epoch "
            f"({source.n_cut} cut to {row_tokens + 1} tokens, {source.n_left_out} left out), {len(held_out):,} held out"
        )
        parents = {"base": artefact_digest(base)}
        recipe = LanguageRecipe(model, tokenizer, source, checks, digest, parents)
        if not config.tune.trains_all:
            say(f"{config.tune.method}: {trained_parameters(model):,} of {all_numbers(model):,} parameters are trained")
        if adapter is None:
            return recipe
        return replace(recipe, writes=adapter.write, kind="adapter")

    def make_hooks(recipe: Recipe, log: RunLog) -> Sequence[Hook]:
        if not config.train.sample_every_steps:
            return ()
        ids = prompt_ids(renderer, config.sample.prompt)
        return [sample_hook(recipe, tokenizer, ids, config.sample, log, config.train.sample_every_steps)]

    with in_run_folder(config) as group:
        read = None if adapter is None else adapter.go_on
        return run_recipe(config, base_config, make_recipe, make_hooks, digest, group, read)


def chat_batches(
    config: SftConfig, renderer: ChatRenderer, training: list[Any], held_out: list[Any], row_tokens: int
) -> tuple[ChatBatches, HeldOutChats]:
    """Batches to train on and to validate on. Raises DataError for a conversation that the format can't hold."""
    pad, train = renderer.tokenizer.pad_id or 0, config.train
    rendered = render_all(renderer, training, config.data.path)
    held = render_all(renderer, held_out, config.data.val or f"{config.data.path} (held out)")
    source = ChatBatches(rendered, row_tokens, train.rows, train.seed, pad)
    return source, HeldOutChats(ChatBatches(held, row_tokens, train.rows, 0, pad))


def opened_base(config: Any, what: str, quantized: bool = False) -> tuple[Path, ModelConfig]:
    """Folder and config of the model that a verb tunes on `what`. Raises ConfigError for paths that are not named, and
    for a quantized model unless it may be one."""
    if not config.model.path:
        raise ConfigError("model.path: expected a model folder; set model.path=…")
    if not config.data.path:
        raise ConfigError(f"data.path: expected {what} as JSON lines; set data.path=…")
    base = find_model(config.model.path)
    if read_quantization(config_of(base)) and not quantized:
        raise ConfigError(
            f"model.path: expected weights in floating point, got quantized ones in {base}, which have no gradient; "
            "with fledge sft tune an adapter beside them (tune.method=lora), or the original and quantize that"
        )
    return base, read_config(base)[1]


def check_writer(config: ModelConfig, base: Path) -> None:
    """Raises ConfigError for a model that does not go on from a prompt: an encoder, one that reads a source beside it,
    one without an output over the vocabulary."""
    if config.decoder is None or config.encoder is not None or not config.lm:
        got = config.family if config.lm else f"{config.family} without an output over the vocabulary"
        raise ConfigError(
            f"model.path: expected a decoder, which goes on from a prompt, got {got} in {base}; name another model, or "
            "tune this one with fledge finetune"
        )


def tuned_by(config: TuneConfig, base: Path, seed: int, tokenizer: Tokenizer, aside: bool = False) -> Tuned | None:
    """The adapter that a config asks for; None where it trains weights of the base. `aside`: the base must still be had
    without it. Raises ConfigError for a method that can't be set aside then."""
    if config.method == "full":
        return None
    if aside and config.method not in SET_ASIDE:
        raise ConfigError(f"tune.method: expected full, {' or '.join(SET_ASIDE)} here, got {config.method}")
    return Tuned(config, base, seed, tuple(tokenizer.encode(config.init_text)))


@dataclass(frozen=True)
class Tuned:
    """An adapter beside a base: begun, gone on with from a checkpoint, written."""

    config: TuneConfig
    base: Path
    seed: int
    text_ids: tuple[int, ...] = ()
    prepare: Callable[[Transformer], Transformer] | None = None
    """What gives the base its task head, which is then trained whole."""

    def model(self, base: Transformer) -> Transformer:
        """A base with the adapters that the config asks for, as they begin."""
        prepared = base if self.prepare is None else self.prepare(base)
        return tune(prepared, self.config, self.seed, self.text_ids, heads=self.prepare is not None)

    def begin(self, folder: Path) -> Transformer:
        model = self.model(load_model(folder))
        spelled(model, self.base)  # what can't be written is refused now
        return model

    def go_on(self, checkpoint: Path, device: torch.device) -> Transformer:
        """The base with the adapters that the config asks for, their values from a checkpoint."""
        return go_on(self.model(load_model(self.base, device)), checkpoint, self.base)

    def write(self, model: Transformer, folder: Path, tokenizer: Tokenizer) -> None:
        save_adapter(model, folder, self.config, self.base.resolve(), tokenizer)


def prompt_ids(renderer: ChatRenderer, question: str) -> list[int]:
    return renderer.render((Message("user", question or "Hello"),), generation_prompt=True).ids


def conversations(config: SftConfig) -> tuple[list[Any], list[Any]]:
    """Training and held-out conversations. Raises DataError if either is empty."""
    return training_and_held_out(config.data, read_conversations, "conversations")


def training_and_held_out(data: Any, read: Callable[[Path], Iterable[Any]], what: str) -> tuple[list[Any], list[Any]]:
    """What `read` finds in data.path and data.val; without the latter the last val_fraction of the former is held out.
    Raises DataError if either is empty."""
    training = list(read(Path(data.path)))
    if data.val:
        held_out = list(read(Path(data.val)))
        for key, path, found in (("path", data.path, training), ("val", data.val, held_out)):
            if not found:
                raise DataError(f"data.{key}: {path}: expected {what}, found none; add some, or name another file")
        return training, held_out
    if len(training) < 2:
        raise DataError(
            f"data.path: {data.path}: expected at least two {what}, one to hold out, got {len(training)}; add some, "
            "or name held-out ones by data.val"
        )
    n_held_out = min(len(training) - 1, max(1, round(len(training) * data.val_fraction)))
    return training[:-n_held_out], training[-n_held_out:]


def data_digest(config: Any, base: Path, tokenizer: Tokenizer) -> str:
    """Digest of the conversations, of tokenizer and template that render them, and of the base model's folder."""
    digest = hashlib.sha256((tokenizer.digest + (tokenizer.template or "")).encode())
    for name in (config.data.path, config.data.val):
        digest.update(sha256_file(name).encode() if name else b"-")
    for path in (base / "config.json", *sorted(base.glob("*.safetensors"))):
        digest.update(sha256_file(path).encode())
    return digest.hexdigest()
