"""`OwnText`: training batches that the student wrote itself, by the engine and its weights of now (Agarwal et al. 2024,
arXiv 2306.13649). Rollouts of them are kept as alignment keeps its own: on the disk before the first update of them, so
that a run that is stopped goes on to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from fledge.batch import Batch, slice_rows
from fledge.config import to_dict
from fledge.engine.request import Sampling
from fledge.errors import ConfigError
from fledge.lineage import sha256_json
from fledge.log import RunLog, say
from fledge.model.transformer import Transformer
from fledge.recipes.distill_config import DistillConfig
from fledge.recipes.language import BatchSource, row_tokens_of
from fledge.recipes.prompts import Prompt, of_rollout, read_prompts
from fledge.recipes.rollout_file import Rollout, begun, gone_on_with
from fledge.recipes.rollout_watch import figures_of
from fledge.recipes.rollouts import answers_told, compared
from fledge.recipes.sampler import Policy, rows_of, weights_digest
from fledge.text.tokenizer import Tokenizer
from fledge.train.recipe import Hook

OWN = "own"  # a column of batches that the student wrote
FIGURES = ("kl", "kl_answer", "entropy", "answer_tokens", "cut_share", "repetition")


@dataclass
class OwnText:
    """Batch `index` of a run that `due` gives to the student: `rows` texts behind prompts, of `texts` or of a file."""

    model: Transformer
    teacher: Transformer
    tokenizer: Tokenizer
    texts: BatchSource
    config: DistillConfig
    key: str
    prompts: Sequence[Prompt] = ()
    log: RunLog | None = None
    held: tuple[int, Batch] | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir) / "rollouts"

    @cached_property
    def policy(self) -> Policy:
        """The engine; made when it is first needed, where the model then is."""
        how, ends = self.config.on_policy, self.tokenizer.eos_id
        longest = max((len(prompt.ids) for prompt in self.prompts), default=how.prompt_tokens)
        stops = () if ends is None else (ends,)
        return Policy(self.model, self.tokenizer, stops, longest + how.max_tokens, how.slots)

    def before(self, index: int) -> int:
        """How many of the batches before `index` are the student's."""
        return int(index * self.config.on_policy.share)

    def due(self, index: int) -> bool:
        return self.before(index + 1) > self.before(index)

    def batch(self, index: int) -> Batch:
        """Raises CheckpointError if a batch inside a rollout finds it gone, and AgreementError."""
        number, part = divmod(self.before(index), self.config.on_policy.batches)
        if self.held is None or self.held[0] != number:
            rollout = gone_on_with(self.folder, number, self.key) if part else self.begun(number, index)
            self.held = number, own_batch(rollout)
            self.tell(rollout, index, first=part == 0)
        rows = self.config.train.rows
        return slice_rows(self.held[1], part * rows, (part + 1) * rows)

    def begun(self, number: int, index: int) -> Rollout:
        weights = weights_digest(self.model)
        return begun(self.folder, number, self.key, weights, lambda: self.made(number, index, weights))

    def made(self, number: int, index: int, weights: str) -> Rollout:
        how, train = self.config.on_policy, self.config.train
        self.policy.refresh(weights)
        sampling = Sampling(max_tokens=how.max_tokens, temperature=how.temperature)
        prompts = self.chosen(number, index)
        sampled = self.policy.answers(prompts, 1, sampling, (train.seed, "own text", number))
        rows = int(train.micro_rows) or train.rows
        ours, theirs, agreement = compared(self.model, self.teacher, sampled, how.temperature, rows)
        answers = answers_told(sampled, ours, theirs, None)
        figures = figures_of(answers, 1)
        return Rollout(number, self.key, weights, 0.0, answers, {name: figures[name] for name in FIGURES} | agreement)

    def chosen(self, number: int, index: int) -> list[Prompt]:
        """The prompts of a rollout: by seed and number, or the beginnings of the rows that its batches would have
        been."""
        how, train = self.config.on_policy, self.config.train
        if self.prompts:
            return of_rollout(self.prompts, train.rows * how.batches, train.seed, number)
        found: list[Prompt] = []
        while len(found) < train.rows * how.batches:
            if self.due(index):
                found += beginnings(self.texts.batch(index), how.prompt_tokens)
            index += 1
        return found

    def tell(self, rollout: Rollout, index: int, first: bool) -> None:
        """Log a rollout's figures, once, by its first batch."""
        if not first or self.log is None:
            return
        shown = rollout.answers[0]
        say(
            f"rollout {rollout.number}: {rollout.figures['kl']:.3g} nats a token from the teacher · "
            f"{rollout.figures['answer_tokens']:.1f} tokens"
        )
        self.log.write("rollout", batch=index, rollout=rollout.number, **rollout.figures, prompt=shown.prompt,
                       text=shown.text[:400])  # fmt: skip


def own_text(
    config: DistillConfig,
    student: Transformer,
    teacher: Transformer,
    tokenizer: Tokenizer,
    texts: BatchSource,
    digest: str,
) -> OwnText | None:
    """Of a run by its config; None where the student writes nothing. Raises ConfigError where a text would not fit."""
    how = config.on_policy
    if not how.share:
        return None
    room = min(student.config.context_tokens, teacher.config.context_tokens) - how.max_tokens
    longest = 1 if how.prompts else how.prompt_tokens
    if longest > room:
        raise ConfigError(
            f"on_policy.max_tokens: expected prompt and text within {room + how.max_tokens} tokens, the shorter "
            f"context of student and teacher, got {longest} and {how.max_tokens}; lower one of them"
        )
    longest_row = row_tokens_of(config.train, student.config.context_tokens)
    if not how.prompts and how.prompt_tokens > longest_row:
        raise ConfigError(f"on_policy.prompt_tokens: expected at most a row's {longest_row}, got {how.prompt_tokens}")
    if student.config.vocab_size > teacher.config.vocab_size:
        raise ConfigError(
            f"model.vocab_size: expected at most the teacher's {teacher.config.vocab_size}, which scores what the "
            f"student writes, got {student.config.vocab_size}"
        )
    prompts = read_prompts(how.prompts, tokenizer, room) if how.prompts else ()
    key = sha256_json(
        [to_dict(how), to_dict(config.teacher), config.train.seed, config.train.rows, digest, [p.ids for p in prompts]]
    )
    return OwnText(student, teacher, tokenizer, texts, config, key, prompts)


def beginnings(batch: Batch, n_tokens: int) -> list[Prompt]:
    """The first tokens of each row's first document, `n_tokens` or all that it has."""
    ids, doc = batch.tokens.ids, batch.tokens.doc
    found = []
    for row, (tokens, documents) in enumerate(zip(ids[:, :n_tokens], doc[:, :n_tokens], strict=True)):
        at = batch.sample_ids[row] if batch.sample_ids else f"row {row}"
        found.append(Prompt(tuple(tokens[documents == documents[0]].tolist()), {}, at))
    return found


def own_batch(rollout: Rollout) -> Batch:
    """All texts of a rollout as rows, with weight where their tokens are predicted."""
    answers = rollout.answers
    batch = rows_of([a.prompt_ids for a in answers], [a.token_ids for a in answers])
    names = tuple(f"rollout {rollout.number}, text {n} ({a.prompt})" for n, a in enumerate(answers))
    return replace(batch, sample_ids=names, columns={OWN: torch.ones_like(batch.weight)})


def log_of(recipe: object, log: RunLog) -> Sequence[Hook]:
    """Have a recipe's own texts told in its run's log."""
    own = getattr(recipe, OWN, None)
    if own is not None:
        own.log = log
    return ()
