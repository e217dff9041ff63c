"""`fledge align grpo` and `fledge align ppo`: learning from rewards, on the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fledge.batch import Batch, Loss, Term
from fledge.config import to_dict
from fledge.engine.request import Sampling
from fledge.errors import ConfigError
from fledge.lineage import artefact_digest, sha256_json
from fledge.log import RunLog, say
from fledge.model.folder import (
    chat_renderer,
    config_of,
    find_model,
    load_model,
    read_config,
    save_description,
)
from fledge.model.generation import stop_ids
from fledge.model.quantization import read_quantization
from fledge.model.transformer import Transformer
from fledge.parallel.group import Group
from fledge.recipes.dropout import with_dropout
from fledge.recipes.language import whole_folder
from fledge.recipes.prompts import Prompt, read_prompts
from fledge.recipes.rl_config import GrpoRunConfig, PpoRunConfig, RlConfig
from fledge.recipes.rl_methods import Grpo, Learned, Method, Ppo
from fledge.recipes.rollouts import Rollouts
from fledge.recipes.sampler import Policy, Sampled, answer_logits, weights_digest
from fledge.recipes.scoring import Scorer
from fledge.recipes.session import check_whole_rows, in_run_folder, run_recipe, same_model
from fledge.recipes.sft import Tuned, check_writer, data_digest, tuned_by
from fledge.recipes.together import share, told
from fledge.recipes.value_head import read_value_head, with_value_head, write_value_head
from fledge.text.chat import with_format
from fledge.text.tokenizer import Tokenizer
from fledge.train.config import TrainConfig
from fledge.train.recipe import Hook, Totals, added_up
from fledge.tune.attach import trained_parameters
from fledge.tune.freeze import freeze_parts


def grpo(config: GrpoRunConfig) -> dict[str, Any]:
    """Learn from rewards by GRPO or RLOO, or go on, and publish `run.dir`/model: a model, or by tune.method an adapter
    folder. Gives the figures of `pretrain` and `val_reward`."""
    return learn(config, Grpo(config.grpo, config.rollout.max_tokens), valued=False)


def ppo(config: PpoRunConfig) -> dict[str, Any]:
    """As `grpo`, by PPO; the value head stands in the model's folder too, in a file of its own."""
    return learn(config, Ppo(config.ppo), valued=True)


@dataclass
class RlRecipe:
    """Train `model` by `method` on the batches of `rollouts`; validate by greedy answers to `held_out`."""

    model: Transformer
    tokenizer: Tokenizer
    rollouts: Rollouts
    method: Method
    held_out: Sequence[Prompt]
    data_digest: str
    writes: Callable[[Transformer, Path, Tokenizer], None]
    kind: str = "model"
    parents: dict[str, str] = field(default_factory=dict)
    totals: Totals = added_up
    clipped: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Tokens whose objective was clipped since somebody asked, and all of them."""

    def batch(self, index: int) -> Batch:
        return self.rollouts.batch(index)

    def weights(self, batch: Batch) -> dict[str, float]:
        return self.method.weights(batch)

    def loss(self, batch: Batch) -> Loss:
        there = batch.weight > 0
        logits, values = answer_logits(self.model, batch)
        warm = torch.log_softmax(logits / self.rollouts.config.rollout.temperature, -1)
        log_p = warm.gather(1, batch.targets[there][:, None])[:, 0]
        entropy = -(warm.exp() * warm).sum(-1)
        columns = {name: column[there] for name, column in batch.columns.items()}
        learned = Learned(log_p, entropy, values, batch.weight[there], columns)
        self.clipped[0] += float(self.method.clipped(learned).sum())
        self.clipped[1] += float(len(log_p))
        coefficients, whole = self.method.coefficients(), self.method.weights(batch)
        return Loss({n: Term(t, whole[n], coefficients[n]) for n, t in self.method.terms(learned).items()})

    def validate(self, rows: int) -> dict[str, float]:
        """Figures of greedy answers to `rows` held-out prompts (0: all): `val_reward`, each part's, `val_tokens` an
        answer, `val_judge`; `val_loss` is the reward below 0, so that the least is the best."""
        chosen = self.held_out[: rows or None]
        how, policy = self.rollouts.config.rollout, self.rollouts.policy
        policy.refresh(weights_digest(self.model))
        sampling = Sampling(max_tokens=how.max_tokens, temperature=0.0, stop=how.stop)
        scorer, own = self.rollouts.scorer, share(len(chosen), self.rollouts.group)

        def work() -> list[list[float]]:
            answers = policy.answers(chosen[own.start : own.stop], 1, sampling, ("validation",), own.start)
            return [self.scored(one) for one in answers]

        scores = [row for part in told(self.rollouts.group, work) for row in part]
        n = len(scores)
        reward, tokens, judged, *parts = (sum(column) / n for column in zip(*scores, strict=True))
        figures = {"val_loss": -reward, "val_reward": reward, "val_tokens": tokens}
        figures |= {f"val_{name}": part for name, part in zip(scorer.rewards, parts, strict=True)}
        return figures | ({"val_judge": judged} if scorer.judge else {}) | {"val_prompts": n}

    def scored(self, one: Sampled) -> list[float]:
        """Of an answer its reward, its tokens, what the judge says (0 without one), and each part of the reward."""
        parts, reward = self.rollouts.scorer.reward(one.prompt, one.ids, one.completion.text)
        judged = self.rollouts.scorer.judged(one.prompt, one.ids, one.completion.text)
        return [reward, len(one.ids), judged or 0.0, *parts.values()]

    def save(self, folder: Path) -> None:
        self.writes(self.model, folder, self.tokenizer)

    def describe(self, folder: Path) -> None:
        save_description(self.model, self.model.embedding.weight.dtype, folder, self.tokenizer)


@dataclass(frozen=True)
class Start:
    """The policy: begun from `base`, gone on with from a checkpoint, written. `tuned`: as an adapter beside the base;
    `valued`: with a value head."""

    base: Path
    config: RlConfig
    tuned: Tuned | None
    valued: bool

    def begin(self) -> Transformer:
        model = load_model(self.base) if self.tuned is None else self.tuned.begin(self.base)
        return self.ready(model)

    def go_on(self, checkpoint: Path, device: torch.device) -> Transformer:
        if self.tuned is not None:
            model = self.ready(self.tuned.go_on(checkpoint, device))
        else:
            model = load_model(checkpoint, device)
            same_model(model, read_config(self.base)[1], Path(self.config.run.dir))
            model = self.ready(model)
        return read_value_head(model, checkpoint) if self.valued else model

    def ready(self, model: Transformer) -> Transformer:
        model = with_dropout(model, 0.0, self.config.train.dropout)
        if self.config.tune.freeze:
            freeze_parts(model, self.config.tune.freeze)
        return with_value_head(model) if self.valued else model

    def write(self, model: Transformer, folder: Path, tokenizer: Tokenizer) -> None:
        (whole_folder if self.tuned is None else self.tuned.write)(model, folder, tokenizer)
        if self.valued:
            write_value_head(model, folder)


def learn(config: RlConfig, method: Method, valued: bool) -> dict[str, Any]:
    base = checked_base(config)
    base_config = read_config(base)[1]
    check_writer(base_config, base)
    tokenizer = with_format(Tokenizer.load(base), config.chat.format)
    if config.reference and Tokenizer.load(find_model(config.reference)).digest != Tokenizer.load(base).digest:
        raise ConfigError(f"reference: expected a model of {base}'s tokenizer, got another in {config.reference}")
    training, held_out = prompts_of(config, tokenizer, base_config.context_tokens)
    digest = data_digest(config, base, tokenizer)  # type: ignore[arg-type]  # of data.path and data.val
    scorer = Scorer(config.rewards, config.judge, tokenizer)
    tuned = tuned_by(config.tune, base, config.train.seed, tokenizer, aside=True)
    start = Start(base, config, tuned, valued)
    longest = max(len(prompt.ids) for prompt in (*training, *held_out)) + config.rollout.max_tokens

    def make_recipe(group: Group, load: Callable[[], Transformer] | None) -> RlRecipe:
        model = load() if load else start.begin()
        reference = load_model(find_model(config.reference) if config.reference else base).requires_grad_(False)
        how = config.rollout

        def policy() -> Policy:
            return Policy(model, tokenizer, stops_of(base, tokenizer), longest, how.slots, how.deterministic)

        rollouts = Rollouts(
            model, reference, policy, training, config, key_of(config, method, digest), scorer, method.columns,
            method.token_weights, method.next_kl, method.follows, group=group,
        )  # fmt: skip
        trained = trained_parameters(model)
        say(
            f"{len(training):,} prompts, {len(held_out):,} held out · {how.answers} answers a rollout, "
            f"{config.updates} updates of it · {trained:,} parameters are trained"
        )
        kind, parents = "model" if tuned is None else "adapter", {"base": artefact_digest(base)}
        return RlRecipe(model, tokenizer, rollouts, method, held_out, digest, start.write, kind, parents)

    def make_hooks(recipe: Any, log: RunLog) -> Sequence[Hook]:
        recipe.rollouts.log = log
        return [clip_hook(recipe, log, config.train)]

    with in_run_folder(config) as group:
        check_whole_model(config.train)
        return run_recipe(config, base_config, partial(make_recipe, group), make_hooks, digest, group, start.go_on)


def clip_hook(recipe: RlRecipe, log: RunLog, train: TrainConfig) -> Hook:
    """Logs the share of tokens that were clipped since the line before, of all processes."""

    def act(step: int) -> None:
        clipped, whole = recipe.rollouts.group.summed(recipe.clipped)
        recipe.clipped[:] = [0.0, 0.0]
        if whole:
            log.write("policy", step=step, clip_share=clipped / whole)

    return Hook(train.log_every_steps, act, everywhere=True)


def check_whole_model(train: TrainConfig) -> None:
    """Raises ConfigError for processes that share a model's weights: each answers prompts with all of them."""
    check_whole_rows(train)
    if train.parallel.shard > 1 and train.parallel.shard_stage > 1:
        raise ConfigError(
            "train.parallel.shard_stage: expected 1 to learn from rollouts, which every process answers with the whole "
            f"model, got {train.parallel.shard_stage}; use it, or data"
        )


def checked_base(config: RlConfig) -> Path:
    """The model that is begun from. Raises ConfigError for what can't be trained on rollouts."""
    if not config.model.path:
        raise ConfigError("model.path: expected a model folder; set model.path=…")
    if not config.data.path:
        raise ConfigError("data.path: expected prompts as JSON lines; set data.path=…")
    base = find_model(config.model.path)
    if read_quantization(config_of(base)):
        raise ConfigError(
            f"model.path: expected weights in floating point, got quantized ones in {base}, which have no gradient; "
            "align the original and quantize what comes of it"
        )
    return base


def prompts_of(config: RlConfig, tokenizer: Tokenizer, context_tokens: int) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts. Raises DataError, or ConfigError if answers leave no room for prompts."""
    room = context_tokens - config.rollout.max_tokens
    if room < 1:
        raise ConfigError(
            f"rollout.max_tokens: expected less than the context of {context_tokens}, got {config.rollout.max_tokens}"
        )
    training = read_prompts(config.data.path, tokenizer, room)
    if config.data.val:
        return training, read_prompts(config.data.val, tokenizer, room)
    if len(training) < 2:
        raise ConfigError("data.path: expected at least two prompts, one to hold out, got 1; or set data.val")
    n_held_out = min(len(training) - 1, max(1, round(len(training) * config.data.val_fraction)))
    return training[:-n_held_out], training[-n_held_out:]


def stops_of(base: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """The model's stop ids, and the end of a turn where the tokenizer can chat."""
    renderer = chat_renderer(tokenizer)
    return stop_ids(base, tokenizer) | frozenset(() if renderer is None else renderer.stop_ids)


def key_of(config: RlConfig, method: Method, digest: str) -> str:
    """Digest of all that a rollout depends on besides the weights: settings, data, and the models that judge it."""
    whole = to_dict(config)
    parts = {name: whole.get(name) for name in ("rollout", "rewards", "judge", "grpo", "ppo")}
    paths = [config.reference, *(reward.path for reward in (*config.rewards, *config.judge))]
    models = [artefact_digest(find_model(path)) for path in paths if path]
    return sha256_json([parts, config.train.seed, config.train.rows, digest, models, type(method).__name__])
