"""How right the answers of a task head are, each figure with an interval. Imports no torch.

Accuracy, macro F1 and Matthews' correlation (1975) of labels; entity F1 of tags by whole entities (Tjong Kim Sang & De
Meulder 2003); exact match and word F1 of spans (Rajpurkar et al. 2016); Pearson and Spearman of numbers.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from fledge.evals.score import LEVEL, RESAMPLES, Score, mean_score

Figure = Callable[[np.ndarray], float]


def resampled(figure: Figure, n: int, seed: int, resamples: int = RESAMPLES) -> Score:
    """`figure` of all `n` examples (their numbers) and its percentile bootstrap interval over examples."""
    value = figure(np.arange(n))
    if n < 2:
        return Score(value, n, None)
    random = np.random.default_rng(seed)
    drawn = [figure(random.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.quantile(np.array(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(value, n, (float(low), float(high)))


def label_scores(predicted: Sequence[int], right: Sequence[int], n_labels: int, seed: int = 0) -> dict[str, Score]:
    """`accuracy`, `macro_f1` and `mcc` of one label an example."""
    pair = np.asarray(predicted, np.int64) * n_labels + np.asarray(right, np.int64)

    def tables(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(pair[chosen], minlength=n_labels * n_labels).reshape(n_labels, n_labels).astype(float)

    n = len(pair)
    return {
        "accuracy": mean_score([float(p == r) for p, r in zip(predicted, right, strict=True)], seed),
        "macro_f1": resampled(lambda chosen: macro_f1(tables(chosen)), n, seed),
        "mcc": resampled(lambda chosen: matthews(tables(chosen)), n, seed),
    }


def macro_f1(table: np.ndarray) -> float:
    """Mean F1 over labels that occur, predicted or right; table[p, r] counts."""
    there = table.sum(0) + table.sum(1)
    return float((2 * table.diagonal()[there > 0] / there[there > 0]).mean()) if there.any() else 0.0


def matthews(table: np.ndarray) -> float:
    """Matthews' correlation of any number of labels (Gorodkin 2004); 0 where it has no value."""
    n, right, predicted = table.sum(), table.sum(0), table.sum(1)
    spread = (n**2 - (predicted**2).sum()) * (n**2 - (right**2).sum())
    return float((table.trace() * n - predicted @ right) / np.sqrt(spread)) if spread > 0 else 0.0


def number_scores(predicted: Sequence[float], right: Sequence[float], seed: int = 0) -> dict[str, Score]:
    """`pearson`, `spearman`, and `mse`."""
    a, b = np.asarray(predicted, float), np.asarray(right, float)
    n = len(a)
    return {
        "pearson": resampled(lambda chosen: correlation(a[chosen], b[chosen]), n, seed),
        "spearman": resampled(lambda chosen: correlation(ranks(a[chosen]), ranks(b[chosen])), n, seed),
        "mse": mean_score(((a - b) ** 2).tolist(), seed),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of the two never changes."""
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread > 0 else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]


def entity_scores(
    predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]], seed: int = 0
) -> dict[str, Score]:
    """`precision`, `recall` and `f1` of entities over sentences of tags, and `token_accuracy`."""
    counts = np.zeros((len(right), 3))  # right ones found, found, right
    for row, (mine, theirs) in enumerate(zip(predicted, right, strict=True)):
        found, wanted = entities(mine), entities(theirs)
        counts[row] = len(found & wanted), len(found), len(wanted)

    def share(a: int, b: tuple[int, ...], twice: bool = False) -> Figure:
        def figure(chosen: np.ndarray) -> float:
            sums = counts[chosen].sum(0)
            below = sum(sums[column] for column in b)
            return float((2 if twice else 1) * sums[a] / below) if below else 0.0

        return figure

    n = len(counts)
    tokens = [float(a == b) for mine, theirs in zip(predicted, right, strict=True)
              for a, b in zip(mine, theirs, strict=True)]  # fmt: skip
    return {
        "precision": resampled(share(0, (1,)), n, seed),
        "recall": resampled(share(0, (2,)), n, seed),
        "f1": resampled(share(0, (1, 2), twice=True), n, seed),
        "token_accuracy": mean_score(tokens, seed),
    }


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first, end) of each entity in B-, I- and O tags (also E-, S-); an I- that follows nothing of its kind
    begins one, as the CoNLL evaluation reads it. Tags without such a prefix are entities of one word, but for O."""
    found, kind, first = set(), "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, dash, rest = tag.partition("-")
        if not dash or prefix not in "BIES":
            prefix, rest = ("O", "") if tag in ("O", "") else ("S", tag)
        if kind and (prefix in ("B", "S", "O") or rest != kind):
            found.add((kind, first, place))
            kind = ""
        if prefix != "O" and not kind:
            kind, first = rest, place
        if kind and prefix in ("E", "S"):
            found.add((kind, first, place + 1))
            kind = ""
    return found


def span_scores(predicted: Sequence[str], right: Sequence[Sequence[str]], seed: int = 0) -> dict[str, Score]:
    """`exact` and `word_f1`, each the best over a question's right answers; without any, an empty one is right."""
    pairs = list(zip(predicted, right, strict=True))
    exact = [max(float(plain(p) == plain(r)) for r in answers or ("",)) for p, answers in pairs]
    shared = [max(word_f1(plain(p), plain(r)) for r in answers or ("",)) for p, answers in pairs]
    return {"exact": mean_score(exact, seed), "word_f1": mean_score(shared, seed)}


def plain(text: str) -> str:
    """Lower case, without marks and articles, single spaces: as SQuAD's evaluation compares answers."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def word_f1(answer: str, reference: str) -> float:
    """Harmonic mean of the shares of words in common, as SQuAD counts them (Rajpurkar et al. 2016), case kept."""
    got, wanted = answer.split(), reference.split()
    shared = sum((Counter(got) & Counter(wanted)).values())
    return 2 * shared / (len(got) + len(wanted)) if got or wanted else 1.0
