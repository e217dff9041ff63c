"""`Rollouts`: training batches that come from answers of the weights of now.

Rollout r is a function of (seed, r) and of the weights before its first update. It is on the disk before that update;
a run that goes on inside it reads it; one that goes on before it makes it again, or reads it if the weights are the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledge.batch import Batch, join_rows
from fledge.data.keyed import shuffled
from fledge.engine.request import Sampling
from fledge.log import RunLog, say, warn
from fledge.model.transformer import Transformer
from fledge.parallel.group import ALONE, Group
from fledge.recipes.prompts import Prompt, of_rollout
from fledge.recipes.rl_config import RlConfig
from fledge.recipes.rollout_file import (
    Answer,
    Rollout,
    gone_on_with,
    known_of,
    read_figures,
    write_rollout,
)
from fledge.recipes.rollout_watch import alarms, figures_of
from fledge.recipes.sampler import Measured, Policy, Sampled, check_agreement, measured, rows_of, weights_digest
from fledge.recipes.scoring import Scorer
from fledge.recipes.together import share, told

Columns = Callable[[Rollout, int], dict[str, Tensor]]
"""From a rollout and its samples a prompt: what a loss reads, by name, [N, L]; L tokens of the longest answer."""


@dataclass
class Rollouts:
    """Batches of `config.train.rows` answers; `config.updates` of them learn from one rollout.

    `reference`: the model that the distance is measured from. `columns`: what the method makes of a rollout.
    `token_weights`: what each token of answers of these lengths counts. `next_kl`: the weight of the distance from that
    of the rollout before.
    """

    model: Transformer
    reference: Transformer
    make_policy: Callable[[], Policy]
    prompts: Sequence[Prompt]
    config: RlConfig
    key: str
    scorer: Scorer
    columns: Columns
    token_weights: Callable[[list[int]], list[float]]
    next_kl: Callable[[Rollout | None], float]
    follows: bool
    log: RunLog | None = None
    group: Group = ALONE
    """Processes that hold the same weights: each answers a share of a rollout's prompts, whole groups of them."""
    held: tuple[Rollout, Batch] | None = None

    @cached_property
    def policy(self) -> Policy:
        """The engine; made when it is first needed, where the model then is."""
        return self.make_policy()

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir) / "rollouts"

    def batch(self, index: int) -> Batch:
        """The answers of update `index`. The first update of a rollout makes it. Raises CheckpointError if an update
        inside a rollout finds it gone, AgreementError, and what rewards raise."""
        number, update = divmod(index, self.config.updates)
        if self.held is None or self.held[0].number != number:
            rollout = gone_on_with(self.folder, number, self.key) if update else self.begun(number)
            self.held = rollout, self.whole_batch(rollout)
            self.tell(rollout, index)
        rows, n_answers = self.config.train.rows, self.config.rollout.answers
        epoch, place = divmod(update * rows, n_answers)
        order = shuffled(n_answers, self.config.train.seed, "rollout", number, epoch)
        return taken(self.held[1], order[place : place + rows])

    def begun(self, number: int) -> Rollout:
        weights = weights_digest(self.model)
        known = known_of(self.folder, number, self.key, weights)
        if self.group.least(known is not None) and known is not None:
            return known
        rollout = self.made(number, weights)
        self.group.once(lambda: write_rollout(self.folder, rollout))
        return rollout

    def made(self, number: int, weights: str) -> Rollout:
        config, how = self.config, self.config.rollout
        before = gone_on_with(self.folder, number - 1, self.key) if number and self.follows else None
        kl = self.next_kl(before)
        self.policy.refresh(weights)
        prompts = of_rollout(self.prompts, how.prompts, config.train.seed, number)
        sampling = Sampling(max_tokens=how.max_tokens, temperature=how.temperature, stop=how.stop)
        own = share(len(prompts), self.group)

        def work() -> tuple[list[dict[str, Any]], dict[str, float]]:
            chosen, seed = prompts[own.start : own.stop], (config.train.seed, "rollout", number)
            answers, agreement = self.measured_answers(
                self.policy.answers(chosen, how.samples, sampling, seed, own.start)
            )
            return [vars(answer) for answer in answers], agreement

        found = told(self.group, work)
        answers = [Answer(**answer) for part, _ in found for answer in part]
        agreement = agreement_of([(sum(len(a["token_ids"]) for a in part), one) for part, one in found])
        return Rollout(number, self.key, weights, kl, answers, figures_of(answers, how.samples) | agreement)

    def measured_answers(self, sampled: Sequence[Sampled]) -> tuple[list[Answer], dict[str, float]]:
        """The answers with all that is known of them, and how well engine and training agree on them."""
        how, rows = self.config.rollout, int(self.config.train.micro_rows) or self.config.train.rows
        if not sampled:  # fewer prompts than processes
            return [], {}
        ours, theirs, agreement = compared(self.model, self.reference, sampled, how.temperature, rows)
        if how.deterministic:
            self.policy.check_bits(sampled)
        return answers_told(sampled, ours, theirs, self.scorer, how.missing_end_penalty), agreement

    def whole_batch(self, rollout: Rollout) -> Batch:
        """All answers of a rollout as rows, with the method's columns where their tokens are predicted."""
        answers = rollout.answers
        batch = rows_of([a.prompt_ids for a in answers], [a.token_ids for a in answers])
        columns = {
            "old": padded_rows([a.old for a in answers]),
            "reference": padded_rows([a.reference for a in answers]),
        }
        columns |= self.columns(rollout, self.config.rollout.samples)
        lengths = [len(answer.token_ids) for answer in answers]
        placed = {name: torch.zeros_like(batch.weight) for name in columns}
        weight = torch.zeros_like(batch.weight)
        for b, (answer, length, each) in enumerate(zip(answers, lengths, self.token_weights(lengths), strict=True)):
            begin = len(answer.prompt_ids) - 1
            weight[b, begin : begin + length] = each
            for name, column in columns.items():
                placed[name][b, begin : begin + length] = column[b, :length]
        names = tuple(f"rollout {rollout.number}, answer {n} ({a.prompt})" for n, a in enumerate(answers))
        return Batch(batch.tokens, batch.targets, weight, batch.layout, names, columns=placed)

    def tell(self, rollout: Rollout, index: int) -> None:
        """Log a rollout's figures and what is suspect about the run so far; once, by its first update."""
        figures = rollout.figures
        say(
            f"rollout {rollout.number}: reward {figures['reward']:.3f} · {figures['answer_tokens']:.1f} tokens · "
            f"kl {figures['kl']:.2g} · engine and training within {figures['agreement_largest']:.1g}"
        )
        if self.log is None or index % self.config.updates:
            return
        best = max(rollout.answers, key=lambda answer: answer.reward)
        self.log.write("rollout", batch=index, rollout=rollout.number, kl_weight=rollout.kl, **figures,
                       prompt=best.prompt, text=best.text[:400])  # fmt: skip
        window = self.config.alarm.window
        numbers = sorted(
            {*range(min(window, rollout.number)), *range(max(0, rollout.number - window + 1), rollout.number)}
        )
        history = [found for n in numbers if (found := read_figures(self.folder, n)) is not None]
        for text in alarms([*history, figures], self.config.alarm):
            self.log.write("alarm", batch=index, rollout=rollout.number, text=text)
            warn(f"rollout {rollout.number}: {text}")


def agreement_of(parts: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """How well engine and training agree on all answers, from each process's number of tokens and what it found."""
    parts = [(n, found) for n, found in parts if n]
    if len(parts) == 1:
        return parts[0][1]
    k3 = sum(n * found["agreement_k3"] for n, found in parts) / sum(n for n, _ in parts)
    return {"agreement_k3": k3, "agreement_largest": max(found["agreement_largest"] for _, found in parts)}


def compared(
    model: Transformer, reference: Transformer, sampled: Sequence[Sampled], temperature: float, rows: int
) -> tuple[list[Measured], list[Measured], dict[str, float]]:
    """What the policy and the reference say of answers, `rows` at a time, and how well engine and training agree on
    them. Raises AgreementError."""
    prompts, ids = [one.prompt.ids for one in sampled], [one.ids for one in sampled]
    ours = measured(model, prompts, ids, temperature, rows)
    k3, largest = check_agreement(sampled, [one.plain for one in ours])
    theirs = measured(reference.to(model.embedding.weight.device), prompts, ids, temperature, rows)
    return ours, theirs, {"agreement_k3": k3, "agreement_largest": largest}


def answers_told(
    sampled: Sequence[Sampled],
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    scorer: Scorer | None,
    missing_end_penalty: float = 0.0,
) -> list[Answer]:
    """Answers with what the policy (`ours`) and the reference (`theirs`) say of them, and what they are worth: 0
    without a scorer."""
    answers = []
    for one, own, other in zip(sampled, ours, theirs, strict=True):
        parts, reward, judge = dict[str, float](), 0.0, None
        if scorer is not None:
            parts, reward = scorer.reward(one.prompt, one.ids, one.completion.text)
            judge = scorer.judged(one.prompt, one.ids, one.completion.text)
        cut = one.completion.finish_reason == "length"
        answers.append(
            Answer(
                one.prompt.at, list(one.prompt.ids), list(one.ids), one.completion.text, "length" if cut else "stop",
                one.logprobs, own.plain.tolist(), own.warm.tolist(), other.warm.tolist(), own.entropy.tolist(),
                own.values.tolist(), parts, reward - missing_end_penalty * cut, judge,
            )
        )  # fmt: skip
    return answers


def padded_rows(rows: Sequence[Sequence[float]]) -> Tensor:
    """float64 [N, L], 0 behind each row's end."""
    found = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.float64)
    for b, row in enumerate(rows):
        found[b, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return found


def taken(batch: Batch, order: np.ndarray) -> Batch:
    """Rows of a padded batch, in an order."""
    return join_rows([batch], order.tolist())
