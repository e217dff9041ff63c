"""What a task head's numbers say: labels of texts, tags of words, places of answers, choices. The same for
`fledge predict`, for validation while tuning and over HTTP. Imports no torch.

T tokens of a row, L labels, N tokens of a context in a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fledge.data.task_framing import Window


def shares_of(logits: np.ndarray, several: bool = False) -> np.ndarray:
    """Probabilities, float64, of logits [..., L]: of all labels together, or of each by itself (`several`)."""
    logits = np.asarray(logits, np.float64)
    if several:
        return (1 + np.tanh(logits / 2)) / 2
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def labelled(logits_L: np.ndarray, names: Sequence[str], several: bool) -> dict[str, Any]:
    """The likeliest label with every label's probability; of several, those above a half."""
    shares = shares_of(logits_L, several).tolist()
    probabilities = dict(zip(names, shares, strict=True))
    if several:
        return {
            "labels": [name for name, share in probabilities.items() if share > 0.5],
            "probabilities": probabilities,
        }
    best = int(logits_L.argmax())
    return {"label": names[best], "probability": shares[best], "probabilities": probabilities}


def word_tags(logits_TL: np.ndarray, firsts: Sequence[int], names: Sequence[str]) -> list[tuple[str, float | None]]:
    """A tag for each word, by the first of its tokens, and its probability; a word that had no place in the row (-1)
    gets O, or the first label, and None."""
    outside = "O" if "O" in names else names[0]
    best, shares = logits_TL.argmax(-1), shares_of(logits_TL).max(-1)
    return [(names[best[place]], float(shares[place])) if place >= 0 else (outside, None) for place in firsts]


class SpanSearch:
    """The best span of one question over its windows: start before end, at most `longest` tokens, by the sum of the
    two numbers."""

    def __init__(self, context: str, longest: int = 30, n_best: int = 20):
        self.context, self.longest, self.n_best = context, longest, n_best
        self.found: dict[str, Any] = {"answer": "", "start": 0, "end": 0, "score": -np.inf, "probability": 0.0}
        self.null_score, self.null_probability = np.inf, 1.0

    def see(self, window: Window, logits_T2: np.ndarray) -> None:
        """Take the numbers of a window's row, padding after it or not."""
        null = float(logits_T2[0, 0] + logits_T2[0, 1])
        self.null_score = min(self.null_score, null)
        inside_N2 = logits_T2[window.first : window.first + len(window.offsets)]
        if not len(inside_N2):
            return
        shares = shares_of(np.concatenate([logits_T2[:1], inside_N2]).T)  # of starts, of ends; the first is "none"
        self.null_probability = min(self.null_probability, float(shares[0, 0] * shares[1, 0]))
        score, first, last = best_span(inside_N2[:, 0], inside_N2[:, 1], self.longest, self.n_best)
        if score > self.found["score"]:
            begin, end = int(window.offsets[first, 0]), int(window.offsets[last, 1])
            text = self.context[begin:end]
            start = begin + len(text) - len(text.lstrip())
            self.found = {
                "answer": text.strip(), "start": start, "end": start + len(text.strip()), "score": float(score),
                "probability": float(shares[0, 1 + first] * shares[1, 1 + last]),
            }  # fmt: skip

    def answer(self) -> dict[str, Any]:
        """`answer` with its characters `start` to `end` of the context, its `score` and its `probability`: the share of
        its start among the starts of its window, times that of its end; the first token, which stands for no answer,
        takes part. `null_score` and `null_probability` are that token's (the least over the windows); of a context
        without tokens they are the answer's, which is ""."""
        null = {"null_score": float(self.null_score), "null_probability": self.null_probability}
        if np.isfinite(self.found["score"]):
            return {**self.found, **null}
        return {**self.found, "score": null["null_score"], "probability": null["null_probability"], **null}


def best_span(start_N: np.ndarray, end_N: np.ndarray, longest: int, n_best: int) -> tuple[float, int, int]:
    """(score, first, last) of the best pair among the `n_best` starts and ends."""
    starts, ends = np.argsort(-start_N)[:n_best], np.argsort(-end_N)[:n_best]
    pairs = [(float(start_N[a] + end_N[b]), int(a), int(b)) for a in starts for b in ends if a <= b < a + longest]
    return max(pairs, default=(float(start_N[starts[0]] + end_N[starts[0]]), int(starts[0]), int(starts[0])))
