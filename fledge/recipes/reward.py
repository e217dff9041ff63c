"""`fledge align reward`: a reward model from pairs (Bradley-Terry), and how far it can be trusted on held-out ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge import device as devices
from fledge.align import losses_preference as losses
from fledge.align.answers import HEAD, answer_rewards
from fledge.batch import Batch, Loss, Term
from fledge.data.keyed_batches import EveryRow
from fledge.data.preference_batches import PreferenceBatches
from fledge.device import Place
from fledge.errors import ConfigError
from fledge.lineage import artefact_digest, read_card, write_text_durably
from fledge.log import say
from fledge.model.config import ModelConfig
from fledge.model.folder import config_json, load_model, parse_config
from fledge.model.retask import retask, task_config
from fledge.model.transformer import Transformer
from fledge.recipes.dropout import with_dropout
from fledge.recipes.language import LanguageRecipe, row_tokens_of, spaced
from fledge.recipes.preference_config import AlignRewardConfig, RewardConfig
from fledge.recipes.preference_data import Items, pairs
from fledge.recipes.reward_report import FILE, report, told, write_page
from fledge.recipes.session import check_whole_rows, in_run_folder, run_recipe
from fledge.recipes.sft import data_digest, opened_base
from fledge.text.chat import renderer_for, with_format
from fledge.text.tokenizer import Tokenizer
from fledge.tune.freeze import freeze_parts

FIGURES = ("reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy")


@dataclass
class RewardRecipe(LanguageRecipe):
    """Pairs of answers, each scored on its last token. `margins` float32 [N]: by how much rewards shall differ."""

    settings: RewardConfig = field(default_factory=RewardConfig)
    margins: Tensor = field(default_factory=lambda: torch.zeros(0))

    def weights(self, batch: Batch) -> dict[str, float]:
        n = float(len(batch.targets))
        return {"pairs": n} | ({"centring": n} if self.settings.centring else {})

    def loss(self, batch: Batch) -> Loss:
        total, centred, n, metrics = self.judged(batch)
        terms = {"pairs": Term(total, n)}
        if self.settings.centring:
            terms["centring"] = Term(centred, n, self.settings.centring)
        return Loss(terms, metrics)

    def judged(self, batch: Batch) -> tuple[Tensor, Tensor, float, dict[str, tuple[float, float]]]:
        """Of a batch: its summed loss and penalty, its number of pairs, and figures for the log."""
        chosen, rejected = answer_rewards(self.model, batch, 2).unbind(1)
        assert batch.items is not None
        margin = self.margins[batch.items.to(self.margins.device)].to(chosen.device)
        n, apart = float(len(chosen)), (chosen - rejected).detach()
        figures = (chosen.detach(), rejected.detach(), apart, (apart > 0).float())
        metrics = {name: (float(value.sum()), n) for name, value in zip(FIGURES, figures, strict=True)}
        total = losses.bradley_terry(chosen, rejected, margin).sum()
        return total, losses.centring(chosen, rejected).sum(), n, metrics

    def measured(self, held_out: Sequence[Batch], rows: int) -> dict[str, float]:
        """`val_loss` (with the penalty), `val_pairs`, and the log's figures of held-out pairs."""
        sums = self.totals(held_out, spaced(held_out, rows), self.sums) or [0.0] * (2 + len(FIGURES))
        loss, n, *found = sums
        means = (value / n if n else math.nan for value in (loss, *found))
        return dict(zip(("val_loss", *(f"val_{name}" for name in FIGURES)), means, strict=True)) | {"val_pairs": n}

    def sums(self, batch: Batch) -> list[float]:
        batch = batch.to(self.model.embedding.weight.device)
        total, centred, n, metrics = self.judged(batch)
        return [float(total + self.settings.centring * centred), n, *(metrics[name][0] for name in FIGURES)]


def align_reward(config: AlignRewardConfig, json: bool = False) -> dict[str, Any]:
    """Train, or go on training, and publish `run.dir`/model, which transformers opens as a sequence classifier of one
    label. Gives the figures of the run and, as `held_out`, accuracy beside that of length alone, calibration and
    rewards; calibration.html shows them.

    Raises ConfigError for models that can't be scored so, and DataError naming file and line."""
    base, base_config = opened_base(config, "preferences")
    if config.tune.method != "full":
        raise ConfigError(
            f"tune.method: expected full for a reward model, whose head is new, got {config.tune.method}; "
            "set tune.freeze to train a part"
        )
    tokenizer = with_format(Tokenizer.load(base), config.chat.format)
    row_tokens = row_tokens_of(config.train, base_config.context_tokens)
    wanted = reward_config(base_config, tokenizer)
    digest = data_digest(config, base, tokenizer)
    items = pairs(config.data, renderer_for(tokenizer), row_tokens)
    refuse_padding_at_the_end(items, wanted)

    def make_recipe(load: Callable[[], Transformer] | None) -> RewardRecipe:
        model = load() if load else reward_model(base, wanted, config.train.seed)
        model = with_dropout(model, 0.0, config.train.dropout)
        if config.tune.freeze:
            freeze_parts(model, config.tune.freeze)
        rows, pad = config.train.rows, tokenizer.pad_id or 0
        source = PreferenceBatches(items.training, rows, config.train.seed, pad, scored=True)
        checks = PreferenceBatches(items.held_out, rows, 0, pad, scored=True, first=items.n_training)
        return RewardRecipe(
            model, tokenizer, source, EveryRow(checks), digest, {"base": artefact_digest(base)},
            settings=config.reward, margins=items.values,
        )  # fmt: skip

    with in_run_folder(config) as group:
        check_whole_rows(config.train)
        result = run_recipe(config, wanted, make_recipe, lambda recipe, log: (), digest, group)
        if group.rank:
            return result
        found = held_out_figures(config, items, tokenizer.pad_id or 0, group.place)
    if not json:
        print(told(found))
    return result | {"held_out": found}


def reward_config(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """A model's config as a reward model's, with a padding id for whoever scores several answers at once. Raises
    ConfigError for a family that has no head on its last token."""
    wanted = config if gives_rewards(config) else task_config(config, HEAD, 1)
    head = next(head for head in wanted.heads if head.name == HEAD)
    if head.take != "last":
        raise ConfigError(
            f"model.path: expected a decoder, whose last token has read the answer, got {config.family}; name another"
        )
    pad = tokenizer.pad_id
    if pad is not None and "pad" not in wanted.special_ids:
        wanted = replace(wanted, special_ids={**wanted.special_ids, "pad": pad})
    return parse_config(config_json(wanted, torch.float32))[1]  # as its folder will say


def gives_rewards(config: ModelConfig) -> bool:
    """Whether a model has a head of one label already."""
    return any(head.name == HEAD and head.labels == 1 for head in config.heads)


def reward_model(base: Path, wanted: ModelConfig, seed: int) -> Transformer:
    """The base with a head of one label, drawn from `seed` where the base has none."""
    model = load_model(base)
    if not gives_rewards(model.config):
        model = retask(model, HEAD, 1, seed=seed)
    model.config = wanted
    return model


def refuse_padding_at_the_end(items: Items, config: ModelConfig) -> None:
    """transformers looks for an answer's end as the last token that isn't padding."""
    pad = config.special_ids.get("pad")
    if any(one.ids[-1] == pad for one in items.found[0].answers):
        raise ConfigError(
            f"chat: expected conversations that don't end with the padding token {pad}, got some; give the tokenizer "
            "a padding token of its own"
        )


def held_out_figures(config: AlignRewardConfig, items: Items, pad_id: int, place: Place) -> dict[str, Any]:
    """The report of the published model, from its file where that is of this model."""
    folder = Path(config.run.dir)
    digest = read_card(folder / "model")["digest"]
    path = folder / FILE
    if path.is_file():
        try:
            found: dict[str, Any] = loads(path.read_text(encoding="utf-8"))
            if found["model"] == digest:
                return found
        except (ValueError, KeyError, TypeError):
            say(f"{path}: not what was written; measured again")
    device = devices.pick(config.train.device, "float32", config.train.threads, place).device
    model = load_model(folder / "model", device)
    batches = EveryRow(PreferenceBatches(items.held_out, config.train.rows, 0, pad_id, scored=True))
    with torch.inference_mode():
        rewards = torch.cat([answer_rewards(model, batch.to(device), 2) for batch in batches]).tolist()
    text = dumps({"model": digest, **report(rewards, items, config.reward.bins, config.train.seed)}, indent=1)
    write_text_durably(path, text + "\n")
    measured: dict[str, Any] = loads(text)
    write_page(folder, measured)
    return measured
