"""`fledge finetune task=text2text`: an encoder-decoder learns to write a target for a source; scored as its published
folder writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.data.keyed_batches import EveryRow
from fledge.data.task_rows import PairExample
from fledge.data.text_pair_batches import TextPairBatches
from fledge.engine.config import EngineConfig
from fledge.engine.load import load_engine
from fledge.engine.writing import written
from fledge.errors import ConfigError
from fledge.evals.text_scores import check_metrics, signatures, text_scores
from fledge.lineage import artefact_digest, write_text_durably
from fledge.log import say
from fledge.model.config import ModelConfig
from fledge.model.folder import find_model, load_model, read_config
from fledge.model.transformer import Transformer
from fledge.recipes.finetune_config import FinetuneConfig
from fledge.recipes.labelled import PREDICTIONS, check_named, data_digest, rows_of, run_tuned
from fledge.recipes.language import LanguageRecipe
from fledge.recipes.objective import started
from fledge.recipes.sft import Tuned
from fledge.text.sides import Sides
from fledge.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pairs:
    """What is trained on and held out, and how it is read."""

    base: Path
    model_config: ModelConfig
    sides: Sides
    training: list[PairExample]
    held_out: list[PairExample]

    def batches(self, config: FinetuneConfig) -> tuple[TextPairBatches, TextPairBatches]:
        """Batches to train on and to validate on."""
        start, train = self.model_config.special_ids["start"], config.train
        return (
            TextPairBatches(self.sides, self.training, start, train.rows, train.seed),
            TextPairBatches(self.sides, self.held_out, start, train.rows, 0),
        )


def text2text(config: FinetuneConfig) -> dict[str, Any]:
    """Tune, or go on tuning, and publish `run.dir`/model. Gives the figures of the run, `scores` of what the published
    folder writes for the held-out sources (run.dir/predictions.jsonl) with n and an interval, `signatures` of the
    metrics, and with `writing.before` `scores_before` of the model that tuning starts from.

    Raises ConfigError for a model without an encoder or a decoder, and for metrics that are not installed, DataError
    naming file and line."""
    check_metrics(config.writing.metrics)
    pairs = opened(config)
    tokenizer = pairs.sides.tokenizer
    digest = data_digest(config, pairs.base, tokenizer)
    adapter = None if config.tune.method == "full" else Tuned(config.tune, pairs.base, config.train.seed)

    def first() -> Transformer:
        model = load_model(pairs.base) if adapter is None else adapter.begin(pairs.base)
        model.config = pairs.model_config
        return model

    def make(model: Transformer) -> LanguageRecipe:
        source, checks = pairs.batches(config)
        read, wrote = source.n_cut
        say(
            f"{len(pairs.training):,} pairs to train on, {len(pairs.held_out):,} held out; longer texts are cut: "
            f"{read:,} sources reach {pairs.sides.source_tokens} tokens, {wrote:,} targets {pairs.sides.target_tokens}"
        )
        parents = {"base": artefact_digest(pairs.base)}
        return LanguageRecipe(model, tokenizer, source, EveryRow(checks), digest, parents)

    return run_tuned(config, pairs.model_config, digest, first, adapter, make, lambda: scored(config, pairs))


def opened(config: FinetuneConfig) -> Pairs:
    """Base, rows and how they are read. Raises ConfigError and DataError."""
    check_named(config)
    if config.tune.virtual:
        raise ConfigError(f"tune.method: expected an adapter of maps for text2text, got {config.tune.method}")
    if config.class_weights != "none":
        raise ConfigError("class_weights: expected none for the task text2text, which has no classes")
    base = find_model(config.model.path)
    model = read_config(base)[1]
    if model.encoder is None or model.decoder is None or not model.lm:
        raise ConfigError(
            f"task: text2text expects an encoder-decoder with an output over the vocabulary (T5, BART), got "
            f"{model.family} in {base}; a decoder alone learns answers by fledge sft"
        )
    model = started(model)
    training, held_out = rows_of(config)
    pairs = [[one for one in rows if isinstance(one, PairExample)] for rows in (training, held_out)]
    return Pairs(base, model, sides_of(config, model, Tokenizer.load(base)), *pairs)


def sides_of(config: FinetuneConfig, model: ModelConfig, tokenizer: Tokenizer) -> Sides:
    """How the model's sides are read. Raises ConfigError for more tokens than its context."""
    data, context = config.data, model.context_tokens
    for name in ("max_tokens", "max_target_tokens"):
        if getattr(data, name) > context:
            raise ConfigError(f"data.{name}: expected at most the context of {context}, got {getattr(data, name)}")
    return Sides(tokenizer, data.max_tokens or context, data.max_target_tokens or context, data.prefix)


def scored(config: FinetuneConfig, pairs: Pairs) -> dict[str, Any]:
    """The scores of what the published folder writes; its texts are written beside it."""
    folder = Path(config.run.dir) / "model"
    found = answers(config, str(folder), pairs.sides, pairs.held_out)
    lines = [
        json.dumps({"source": one.source, "target": text, "reference": one.target}, ensure_ascii=False)
        for one, text in zip(pairs.held_out, found, strict=True)
    ]
    write_text_durably(Path(config.run.dir) / PREDICTIONS, "\n".join(lines) + "\n")
    result = {"scores": scores_of(config, found, pairs), "signatures": signatures(config.writing.metrics)}
    if config.writing.before:
        before = answers(config, str(pairs.base), pairs.sides, pairs.held_out)
        result["scores_before"] = scores_of(config, before, pairs)
    return result


def answers(config: FinetuneConfig, folder: str, sides: Sides, examples: Sequence[PairExample]) -> list[str]:
    """What the model of a folder writes for the sources."""
    engine = load_engine(folder, EngineConfig(n_slots=max(8, config.writing.beams), threads=config.train.threads))
    sources, how = sides.sources([example.source for example in examples]), config.writing
    return written(engine, sources, how.max_tokens, how.beams, how.length_penalty)


def scores_of(config: FinetuneConfig, found: Sequence[str], pairs: Pairs) -> dict[str, Any]:
    right = [example.target or "" for example in pairs.held_out]
    return {name: score.as_dict() for name, score in text_scores(found, right, config.writing.metrics).items()}
