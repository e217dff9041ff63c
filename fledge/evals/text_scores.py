"""How near written texts are to their references: BLEU and chrF by sacrebleu, ROUGE by rouge-score, each with an
interval over texts. Imports no torch; the two packages are of the extra `eval`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from fledge.errors import ConfigError
from fledge.evals.score import Score, mean_score
from fledge.evals.task_scores import resampled

METRICS = ("bleu", "chrf", "rouge")
PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score"}
ROUGE = ("rouge1", "rouge2", "rougeL")


def check_metrics(metrics: Sequence[str]) -> None:
    """Raises ConfigError where what computes them is not installed: before a training, not after it."""
    for name in metrics:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"metrics: {name} needs {PACKAGES[name]}, which is not installed; pip install 'fledge[eval]', or leave "
                f"{name} out of metrics"
            )


def text_scores(written: Sequence[str], right: Sequence[str], metrics: Sequence[str] = METRICS) -> dict[str, Score]:
    """`exact` (share of texts that are equal, outer spaces aside); `bleu` (Papineni et al. 2002, with the tokens of
    mteval-13a) and `chrf` (Popović 2015, six characters, beta 2), of the whole corpus, 0..100; `rouge1`, `rouge2` and
    `rougeL` (Lin 2004), means of F1, 0..1. Intervals draw the texts again."""
    check_metrics(metrics)
    equal = [float(mine.strip() == theirs.strip()) for mine, theirs in zip(written, right, strict=True)]
    found = {"exact": mean_score(equal, 0)}
    for name in ("bleu", "chrf"):
        if name in metrics:
            found[name] = corpus_score(metric_of(name), written, right)
    return found | (rouge_scores(written, right) if "rouge" in metrics else {})


def metric_of(name: str) -> Any:
    """sacrebleu's metric with its defaults."""
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU() if name == "bleu" else CHRF()


def signatures(metrics: Sequence[str]) -> dict[str, str]:
    """What sacrebleu says a figure was computed by, for others to repeat it."""
    found = {}
    for name in ("bleu", "chrf"):
        if name in metrics:
            metric = metric_of(name)
            metric.corpus_score(["a"], [["a"]])  # which tells it the number of references
            found[name] = str(metric.get_signature())
    return found


def corpus_score(metric: Any, written: Sequence[str], right: Sequence[str]) -> Score:
    """A figure of sums over texts, which are taken once and added up for each resample. sacrebleu gives those of a text
    by methods without a public name; the tests hold the result equal to its corpus_score."""
    rows = metric._extract_corpus_statistics(list(written), [list(right)])
    sums = np.array(rows, dtype=float)

    def figure(chosen: np.ndarray) -> float:
        return float(metric._aggregate_and_compute(sums[chosen].tolist()).score)

    return resampled(figure, len(sums), 0, resamples=500)


def rouge_scores(written: Sequence[str], right: Sequence[str]) -> dict[str, Score]:
    """Words are runs of a-z and 0-9 in small letters, as everywhere: ROUGE is for English."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE)
    rows = [scorer.score(theirs, mine) for mine, theirs in zip(written, right, strict=True)]
    return {name: mean_score([row[name].fmeasure for row in rows], 0) for name in ROUGE}
