"""From logits to a token. The order, always the same:

logit bias -> repetition penalty -> presence and frequency penalties -> ban of what the constraint does not allow and of
stop tokens before min_tokens -> temperature -> top-k -> top-p -> min-p -> typical-p -> argmax of log p + Gumbel noise
(fledge/engine/noise.py).

Temperature 0 is the argmax after the penalties, the lowest id among equals. Ties at the edge of top-k and top-p keep
the lowest ids, so top_k=1 is greedy. Works on one row of V logits in numpy: its argmax over 32,000 floats takes 7 µs
where torch's takes 100 µs (one thread), and a row's result can't depend on what other rows are in the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fledge.engine.noise import contenders, gumbel, other_key, position_key, sequence_key, uniform
from fledge.engine.rejection import Odds, dense, residual
from fledge.engine.request import Sampling, TokenLogprob
from fledge.errors import EngineError

if TYPE_CHECKING:
    from fledge.engine.constrain import Automaton

COLDEST = 1e-100  # a lower temperature overflows float64, and this one is greedy already


class Sampler:
    """Chooses the tokens of one answer. `history`: the prompt's ids (the repetition penalty sees them).

    `stop_ids`: the tokens that `min_tokens` keeps away. `choose` is pure but for `accept`, which counts the answer and
    moves its automaton.
    """

    def __init__(
        self,
        sampling: Sampling,
        choice: int,
        history: Sequence[int],
        stop_ids: Iterable[int],
        vocab_size: int,
        automaton: Automaton | None = None,
    ):
        self.sampling = sampling
        self.automaton = automaton
        self.key = sequence_key(sampling.seed, choice)
        self.vocab_size = vocab_size
        self.n_accepted = 0
        self.stop_ids = np.array(sorted(i for i in stop_ids if i < vocab_size), dtype=np.int64)
        self.bias_ids = np.array([token for token, _ in sampling.logit_bias], dtype=np.int64)
        self.biases = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float32)
        counted = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        self.counts = np.zeros(vocab_size, np.float32) if counted else None
        self.seen: np.ndarray | None = None
        if sampling.repetition_penalty != 1.0:
            self.seen = np.zeros(vocab_size, bool)
            self.seen[np.asarray(history, dtype=np.int64)] = True
        self.penalised = bool(sampling.logit_bias) or self.seen is not None or self.counts is not None

    def choose(self, logits: np.ndarray, position: int) -> int:
        """The token at `position` (number of tokens before it), from float32 logits [V].

        Raises EngineError when the logits are not finite or every token is banned."""
        sampling = self.sampling
        scores = self.penalise(logits)
        best_id = int(scores.argmax())
        best = float(scores[best_id])
        if not math.isfinite(best):
            raise EngineError(f"engine: expected finite logits, got {best} at position {position}; check the weights")
        if sampling.temperature == 0.0:
            return best_id
        temperature, key = max(sampling.temperature, COLDEST), position_key(self.key, position)
        if not truncates(sampling):
            ids = contenders(scores, best_id, temperature, key)
            values = (scores[ids].astype(np.float64) - best) / temperature
        else:
            ids, values = truncate((scores.astype(np.float64) - best) / temperature, sampling)
        return int(ids[(values + gumbel(key, ids)).argmax()])

    def odds(self, logits: np.ndarray, position: int) -> Odds:
        """The distribution that `choose` samples at a temperature above 0. Raises EngineError."""
        sampling, scores = self.sampling, self.penalise(logits)
        best = float(scores.max())
        if not math.isfinite(best):
            raise EngineError(f"engine: expected finite logits, got {best} at position {position}; check the weights")
        values = (scores.astype(np.float64) - best) / max(sampling.temperature, COLDEST)
        ids, values = truncate(values, sampling)
        p = np.exp(values)
        return Odds(ids, p / p.sum())

    def guess(self, logits: np.ndarray, position: int) -> tuple[int, Odds]:
        """A token of a draft and the odds it was drawn by, with noise that nothing else uses."""
        odds = self.odds(logits, position)
        return odds.draw(position_key(other_key(self.key, "guess"), position)), odds

    def check(self, logits: np.ndarray, position: int, guessed: int, guessed_by: Odds | None) -> int:
        """The token at `position`: `guessed`, drawn by the odds `guessed_by` (None: it was certain to be guessed), with
        probability min(1, p/q), else one of the residual, max(0, p - q) over its sum; so it is drawn by p. Source:
        speculative sampling, Leviathan et al. 2022 (arXiv 2211.17192), §2.3."""
        odds = self.odds(logits, position)
        q = dense(guessed_by or Odds(np.array([guessed]), np.ones(1)), self.vocab_size)
        p = dense(odds, self.vocab_size)
        key = position_key(other_key(self.key, "check"), position)
        if uniform(key, np.zeros(1, np.int64))[0] * q[guessed] < p[guessed]:
            return guessed
        return residual(p, q).draw(position_key(self.key, position))

    @property
    def ended(self) -> bool:
        """Whether the constraint is met and no token can follow."""
        return self.automaton is not None and self.automaton.ended

    def accept(self, token: int) -> None:
        """Count a token of the answer: the penalties and min_tokens look at it from now on. Raises EngineError when the
        constraint can't go on from it."""
        self.n_accepted += 1
        if self.automaton is not None and token not in self.stop_ids:
            self.automaton.accept(token)
        if self.seen is not None:
            self.seen[token] = True
        if self.counts is not None:
            self.counts[token] += 1

    def penalise(self, logits: np.ndarray) -> np.ndarray:
        """The logits after bias, penalties and the ban of stop tokens; the same array when there is nothing to do."""
        banned = self.n_accepted < self.sampling.min_tokens and len(self.stop_ids) > 0
        if not self.penalised and not banned and self.automaton is None:
            return logits
        scores = logits.copy()
        np.add.at(scores, self.bias_ids, self.biases)
        if self.seen is not None:
            penalty = np.float32(self.sampling.repetition_penalty)
            seen = scores[self.seen]
            scores[self.seen] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self.counts is not None:
            scores -= np.float32(self.sampling.frequency_penalty) * self.counts
            scores -= np.float32(self.sampling.presence_penalty) * (self.counts > 0)
        if self.automaton is not None:
            self.constrain(scores, self.automaton, banned)
        elif banned:
            scores[self.stop_ids] = -np.inf
        return scores

    def constrain(self, scores: np.ndarray, automaton: Automaton, banned: bool) -> None:
        """Ban in place what the constraint does not allow, and the stop tokens but where it may end; `min_tokens` keeps
        those away only while there is something else to say."""
        kept, allowed = scores[self.stop_ids], automaton.allowed
        scores += automaton.penalty
        says_more = np.count_nonzero(allowed) > np.count_nonzero(allowed[self.stop_ids])
        ends = automaton.accepting and not (banned and says_more)
        scores[self.stop_ids] = kept if ends else -np.inf


def truncates(sampling: Sampling) -> bool:
    """Whether `truncate` would leave anything out."""
    return bool(sampling.top_k) or sampling.top_p < 1.0 or sampling.min_p > 0.0 or sampling.typical_p < 1.0


def truncate(scores: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """(ids, scores) of the tokens that top-k, then top-p, min-p and typical-p keep, by id; scores are log p up to a
    constant, the largest 0."""
    ids, values = np.arange(len(scores)), scores
    if 0 < sampling.top_k < len(values):
        edge = np.partition(values, len(values) - sampling.top_k)[len(values) - sampling.top_k]
        kept = highest(values, sampling.top_k, edge)
        ids, values = ids[kept], values[kept]
    if sampling.top_p < 1.0:
        rising = np.sort(values)
        mass = np.cumsum(np.exp(rising)[::-1])  # reversed after exp: a backward view costs it its vector path
        n_kept = 1 + int((mass[:-1] < sampling.top_p * mass[-1]).sum())  # kept: the mass before it is below top_p
        kept = highest(values, n_kept, rising[-n_kept])
        ids, values = ids[kept], values[kept]
    if sampling.min_p > 0.0:
        kept = np.flatnonzero(values >= math.log(sampling.min_p))
        ids, values = ids[kept], values[kept]
    if sampling.typical_p < 1.0:
        kept = typical(values, sampling.typical_p)
        ids, values = ids[kept], values[kept]
    return ids, values


def typical(values: np.ndarray, mass: float) -> np.ndarray:
    """Places, ascending, of the tokens whose information -log p is nearest the distribution's entropy, as few as reach
    `mass`; `values` are log p up to a constant. Source: locally typical sampling, Meister et al. 2022 (arXiv
    2202.00666)."""
    places = np.flatnonzero(values > -np.inf)
    log_p = values[places] - values.max()
    log_p -= math.log(np.exp(log_p).sum())
    p = np.exp(log_p)
    nearest = np.argsort(np.abs(log_p - (p * log_p).sum()), kind="stable")
    n_kept = 1 + int((np.cumsum(p[nearest])[:-1] < mass).sum())  # kept: the mass before it is below `mass`
    return np.sort(places[nearest[:n_kept]])


def highest(values: np.ndarray, n: int, edge: float) -> np.ndarray:
    """Places, ascending, of the n highest values; `edge` is the n-th highest. Among equals the first places stay."""
    places = np.flatnonzero(values >= edge)
    if len(places) == n:
        return places
    above = np.flatnonzero(values > edge)
    equal = np.flatnonzero(values == edge)[: n - len(above)]
    return np.sort(np.concatenate([above, equal]))


def token_logprob(logits: np.ndarray, token: int, n_top: int, n_known: int | None = None) -> TokenLogprob:
    """The log-probability of `token` and of the `n_top` likeliest tokens under the softmax of raw logits [V].

    Before bias, penalties, temperature and truncation. Alternatives come from the first `n_known` ids alone (a model's
    vocabulary may be padded beyond its tokenizer's); the normaliser counts all of them.
    """
    best = logits.max()
    normaliser = float(best) + math.log(np.exp(logits - best).sum(dtype=np.float64))
    top: tuple[tuple[int, float], ...] = ()
    if n_top:
        known = logits[:n_known]
        n_top = min(n_top, len(known))
        ids = highest(known, n_top, np.partition(known, len(known) - n_top)[len(known) - n_top])
        best_first = sorted(ids.tolist(), key=lambda token: (-known[token], token))
        top = tuple((token, float(known[token]) - normaliser) for token in best_first)
    return TokenLogprob(token, float(logits[token]) - normaliser, top)
