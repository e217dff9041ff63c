"""Answers of a model in training, by the engine that will serve it, and the proof that both compute one model.

N answers, L tokens of one, T tokens of the longest row, V vocabulary. All log-probabilities are natural.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fledge.batch import Batch, padded
from fledge.data.permutation import keyed_numbers
from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.load import load_engine
from fledge.engine.request import MAX_CHOICES, Completion, Request, Sampling
from fledge.engine.runner import Runner, copied
from fledge.errors import AgreementError, ConfigError
from fledge.model.transformer import Transformer
from fledge.nn.native.library import build
from fledge.recipes.prompts import Prompt
from fledge.text.tokenizer import Tokenizer
from fledge.tune.attach import adapted
from fledge.tune.merge import merged

MOST_K3 = 1e-8  # nats a token
MOST_DIFFERENCE = 1e-4  # nats, of any token
VALUE = "value"


class Policy:
    """An engine beside a model in training, whose weights of now it takes over when asked to.

    `room`: tokens of the longest prompt and answer together.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        stop_ids: Iterable[int],
        room: int,
        slots: int,
        deterministic: bool = False,
    ):
        self.model, self.deterministic = model, deterministic
        if deterministic:
            build()
        config = EngineConfig(n_slots=slots, context_tokens=room, deterministic=deterministic)
        runner = Runner(self.plain(), slots, room)
        if deterministic and runner.why_torch:
            raise ConfigError(
                f"rollout.deterministic: expected the compiled kernels to compute the model, got torch: "
                f"{runner.why_torch}"
            )
        self.engine = Engine(runner, tokenizer, config, stop_ids)

    def plain(self) -> Transformer:
        """A copy of the model as it is served: adapters in its weights, no value head."""
        heads, self.model.heads = self.model.heads, nn.ModuleDict()
        try:
            return merged(copied(self.model))
        finally:
            self.model.heads = heads

    def refresh(self, version: str) -> None:
        """Take over the weights of now, which `version` tells from all others."""
        whole = self.plain() if adapted(self.model) else self.model
        state = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("heads.")}
        self.engine.load_weights(state, version)

    def answers(
        self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: tuple[object, ...], first: int = 0
    ) -> list[Sampled]:
        """`answers_of` its engine."""
        return answers_of(self.engine, prompts, n, sampling, seed, first)

    def check_bits(self, answers: Sequence[Sampled]) -> None:
        """One pass over each answer must give what was told while it was made, to the bit. Raises AgreementError."""
        requests = [
            Request(str(n), (*one.prompt.ids, *one.ids), Sampling(max_tokens=1), prompt_logprobs=True)
            for n, one in enumerate(answers)
            if len(one.prompt.ids) + len(one.ids) < self.engine.context_tokens
        ]
        for done in self.engine.complete(requests):
            one = answers[int(done.request_id)]
            assert done.prompt_logprobs is not None
            again = [told.logprob for told in done.prompt_logprobs[len(one.prompt.ids) :] if told is not None]
            if again != one.logprobs:
                place = next(i for i, (a, b) in enumerate(zip(again, one.logprobs, strict=True)) if a != b)
                raise AgreementError(
                    f"{one.prompt.at}, token {place} of the answer: expected log-probability {one.logprobs[place]!r} "
                    f"again in one pass, got {again[place]!r}; the engine's deterministic mode is broken, report it"
                )


def prompted_engine(model: str, n_slots: int) -> Engine:
    """An engine on a model that goes on from prompts. Raises ConfigError for another, and what loading it raises."""
    engine = load_engine(model, EngineConfig(n_slots=n_slots))
    if engine.reads_source:
        raise ConfigError(f"model: expected a decoder, which goes on from a prompt, got an encoder-decoder in {model}")
    return engine


@dataclass(frozen=True)
class Sampled:
    """One answer to a prompt, as the engine gives it."""

    prompt: Prompt
    completion: Completion

    @property
    def ids(self) -> tuple[int, ...]:
        return self.completion.token_ids

    @property
    def logprobs(self) -> list[float]:
        return [told.logprob for told in self.completion.logprobs]


def answers_of(
    engine: Engine, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: tuple[object, ...], first: int = 0
) -> list[Sampled]:
    """`n` answers to each prompt, those to one side by side; `seed` and the prompt's place, counted from `first` on,
    decide them."""
    requests = []
    for place, prompt in enumerate(prompts, first):
        for part, choice in enumerate(range(0, n, MAX_CHOICES)):
            number = int(keyed_numbers(*seed, "answers", place, part)[0] >> np.uint64(1))
            how = Sampling(
                max_tokens=sampling.max_tokens, temperature=sampling.temperature, stop=sampling.stop, seed=number,
                n=min(MAX_CHOICES, n - choice), logprobs=0,
            )  # fmt: skip
            requests.append((prompt, Request(f"{place}/{part}", prompt.ids, how)))
    prompt_of = {request.id: prompt for prompt, request in requests}
    done = engine.complete([request for _, request in requests])
    return [Sampled(prompt_of[one.request_id], one) for one in done]


@dataclass(frozen=True)
class Measured:
    """What a model says of an answer's tokens, each [L]: log p before temperature (float64), log p at temperature, its
    entropy, and what the value head expects (empty without one)."""

    plain: np.ndarray
    warm: np.ndarray
    entropy: np.ndarray
    values: np.ndarray


def rows_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Batch:
    """Prompt and answer a row: weight 1 where the next token is an answer's."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    tokens, layout = padded([row[:-1] for row in rows])
    targets, _ = padded([row[1:] for row in rows])
    weight = torch.zeros(targets.ids.shape)
    for b, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        weight[b, len(prompt) - 1 : len(row) - 1] = 1.0
    return Batch(tokens, targets.ids, weight, layout)


def answer_logits(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Logits [n, V] of a batch's n tokens of positive weight, in order, and their values [n] if there is a head."""
    hidden = model.hidden(batch.tokens, batch.layout)
    values = None
    if VALUE in model.heads:
        values = model.heads[VALUE](hidden, batch.tokens, batch.layout)[..., 0][batch.weight > 0]
    return model.logits(hidden[batch.weight > 0]).float(), values


@torch.no_grad()
def measured(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    temperature: float,
    rows: int,
) -> list[Measured]:
    """What `model` says of answers, `rows` at a time."""
    found: list[Measured] = []
    for start in range(0, len(answers), rows):
        part = slice(start, start + rows)
        batch = rows_of(prompts[part], answers[part]).to(model.embedding.weight.device)
        logits, values = answer_logits(model, batch)
        chosen = batch.targets[batch.weight > 0][:, None]
        plain = torch.log_softmax(logits.double(), -1)
        warm = torch.log_softmax(logits.double() / temperature, -1)
        entropy = -(warm.exp() * warm).sum(-1)
        told = [plain.gather(1, chosen)[:, 0], warm.gather(1, chosen)[:, 0], entropy]
        columns = [t.cpu().numpy() for t in (*told, values if values is not None else entropy.new_zeros(0))]
        ends = np.cumsum([len(answer) for answer in answers[part]])
        begins = ends - [len(answer) for answer in answers[part]]
        found += [Measured(*(column[begin:end] for column in columns)) for begin, end in zip(begins, ends, strict=True)]
    return found


def check_agreement(answers: Sequence[Sampled], trainer: Sequence[np.ndarray]) -> tuple[float, float]:
    """(k3 estimate of KL(engine ‖ trainer) in nats a token, largest |Δ log p|) over all tokens, in float64. Raises
    AgreementError naming the worst place where either is above its limit, or no number."""
    differences = [ours - np.array(one.logprobs) for one, ours in zip(answers, trainer, strict=True)]
    every = np.concatenate(differences)
    k3 = float((np.expm1(every) - every).mean())
    largest = float(np.abs(every).max())
    if k3 <= MOST_K3 and largest <= MOST_DIFFERENCE:
        return k3, largest
    sizes = [np.nan_to_num(np.abs(one), nan=np.inf).max() for one in differences]
    number = int(np.argmax(sizes))
    one, worst = answers[number], differences[number]
    place = int(np.argmax(np.nan_to_num(np.abs(worst), nan=np.inf)))
    raise AgreementError(
        f"{one.prompt.at}, answer {one.completion.index}, token {place}: expected training's log-probability within "
        f"{MOST_DIFFERENCE:g} of the engine's {one.logprobs[place]:.6f}, got {trainer[number][place]:.6f} (k3 of all "
        f"{len(every)} tokens: {k3:.3g}, at most {MOST_K3:g}); they don't compute one "
        "model, so nothing was learned of it"
    )


def weights_digest(model: Transformer) -> str:
    """SHA-256 of names and values of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
