"""`fledge baselines`: the held-out targets of a pre-training run under models that only count, beside the run's own.

The same targets with the same weights as the run's last validation, so the losses can be compared digit by digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fledge import lineage
from fledge.batch import PADDING, Batch
from fledge.config import from_dict, read_yaml
from fledge.data.mixture import Mixture
from fledge.data.shards import Dataset
from fledge.errors import CheckpointError, ConfigError
from fledge.evals import bigram, neighbours
from fledge.evals.bigram import Bigram
from fledge.evals.neighbours import Neighbours
from fledge.log import Progress
from fledge.model.folder import load_model
from fledge.recipes.config import BaselinesConfig, PretrainConfig
from fledge.recipes.language import LanguageRecipe, row_tokens_of
from fledge.recipes.objective import MASKED, objective_tokenizer
from fledge.recipes.pretrain import objective_recipe, open_data, prepare_data

FIGURES = ("val_loss", "val_masked_loss", "val_masked_accuracy")


def baselines(config: BaselinesConfig, json: bool = False) -> dict[str, Any]:
    """`unigram_loss` and, by objective, `bigram_loss` (after the token before) or `neighbours_loss` (between the tokens
    on both sides), in nats a target; the accuracy of each one's best guess; the model's figures under `model`.

    Raises CheckpointError for a run that is not finished, DataError if its data is gone.
    """
    settings, result = finished_run(config.run)
    prepare_data(settings, config.run)
    dataset = open_data(settings, config.run)
    if isinstance(dataset, Mixture):
        raise ConfigError(
            f"{config.run}: expected a run on one dataset, got one on a mixture, whose counts are not known"
        )
    tokenizer = objective_tokenizer(settings, dataset.tokenizer)
    model = load_model(config.run / "model", "cpu")
    row_tokens = row_tokens_of(settings.train, model.config.context_tokens)
    recipe = objective_recipe(settings, dataset, tokenizer, model, row_tokens)
    if recipe.data_digest != lineage.read_card(config.run / "model")["facts"]["data_digest"]:
        raise ConfigError(f"{config.run}: the data has changed since the run; build it again as it was")
    figures = counted_figures(settings, dataset, recipe, model.config.vocab_size, config.batches)
    found = {"run": str(config.run), "objective": settings.objective, **figures,
             "model": {name: result[name] for name in FIGURES if name in result}}  # fmt: skip
    if not json:
        print(table(found))
    return found


def finished_run(folder: Path) -> tuple[PretrainConfig, dict[str, Any]]:
    """The config and the result of a finished run."""
    try:
        result = lineage.read_card(folder / "model")["facts"]["result"]
    except (CheckpointError, KeyError):
        raise CheckpointError(f"{folder}: expected a finished run of fledge pretrain; train it to its end") from None
    return from_dict(PretrainConfig, read_yaml(folder / "run.yaml")), result


def counted_figures(
    settings: PretrainConfig, dataset: Dataset, recipe: LanguageRecipe, vocab_size: int, n_batches: int
) -> dict[str, Any]:
    """Losses and accuracies of the objective's two counting models on `recipe.held_out`."""
    if settings.objective in MASKED:
        left, targets, right = joined(between(batch) for batch in recipe.held_out)
        counts = Neighbours(dataset.train.tokens[:], dataset.train.starts, vocab_size)
        rows = {"unigram": (counts.after.frequency[targets], most_often(counts.after, targets)),
                "neighbours": (counts.probability(left, targets, right), counts.guess(left, right))}  # fmt: skip
        return losses(rows, targets) | {"method": neighbours.METHOD}
    if settings.objective == "causal":
        pairs = Bigram(dataset.train.tokens[:], dataset.train.starts, vocab_size)
    else:
        pairs = Bigram(*written(recipe, n_batches), vocab_size)
    context, targets = joined(after(batch) for batch in recipe.held_out)
    rows = {"unigram": (pairs.frequency[targets], most_often(pairs, targets)),
            "bigram": (pairs.probability(context, targets), pairs.most_frequent()[context])}  # fmt: skip
    return losses(rows, targets) | {"method": bigram.METHOD}


def losses(rows: dict[str, tuple[np.ndarray, np.ndarray]], targets: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {"targets": len(targets)}
    for name, (probability, guess) in rows.items():
        found[f"{name}_loss"] = float(-np.log(probability).mean())
        found[f"{name}_accuracy"] = float((guess == targets).mean())
    return found


def most_often(counts: Bigram, targets: np.ndarray) -> np.ndarray:
    return np.full(len(targets), counts.frequency.argmax())


def after(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """What the model reads at each trained place, and the target: [N] each."""
    there = batch.weight > 0
    return batch.tokens.ids[there].numpy(), batch.targets[there].numpy()


def between(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens on both sides of each masked one as the model reads them, itself in the middle: [N] each. A frame
    stands around every row, so both are there."""
    row, place = np.nonzero(batch.weight.numpy() > 0)
    ids = batch.tokens.ids.numpy()
    return ids[row, place - 1], batch.targets.numpy()[row, place], ids[row, np.minimum(place + 1, ids.shape[1] - 1)]


def written(recipe: LanguageRecipe, n_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """The targets of the first training batches as a shard: start and target ids of each document, and the offsets."""
    documents: list[np.ndarray] = []
    progress = Progress("count targets, batch", n_batches, every_seconds=5.0)
    for index in range(n_batches):
        batch = recipe.batch(index)
        there = batch.tokens.doc != PADDING
        ids, targets, pos = (t[there].numpy() for t in (batch.tokens.ids, batch.targets, batch.tokens.pos))
        begins = np.flatnonzero(pos == 0)
        for start, stop in zip(begins, [*begins[1:], len(ids)], strict=True):
            documents.append(np.append(ids[start:stop], targets[stop - 1]))
        progress.update(index + 1)
    progress.close()
    return np.concatenate(documents), np.cumsum([0, *(len(ids) for ids in documents)])


def joined(parts: Iterator[tuple[np.ndarray, ...]]) -> Sequence[np.ndarray]:
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def table(found: dict[str, Any]) -> str:
    """What people read."""
    model = found["model"]
    own = model.get("val_masked_loss", model.get("val_loss", float("nan")))
    lines = [f"{found['targets']:,} held-out targets of {found['run']} ({found['objective']}); nats each, accuracy"]
    for name in ("unigram", "bigram", "neighbours"):
        if f"{name}_loss" in found:
            lines.append(f"{name:<11}{found[f'{name}_loss']:8.4f}{100 * found[f'{name}_accuracy']:8.2f} %")
    right = model.get("val_masked_accuracy")
    lines.append(f"{'the model':<11}{own:8.4f}" + ("" if right is None else f"{100 * right:8.2f} %"))
    return "\n".join(lines)
