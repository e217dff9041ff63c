"""Whether people who label the same things agree beyond chance: Cohen's kappa, Krippendorff's alpha, both for names
without order. Imports no torch.

What has no value (nobody labelled the same thing, or everybody said the same of all of it) is None, never NaN.

A label such as "the first is better" depends on the order in which things are listed. `mirror` maps such labels to what
they are in the other order, and chance is then reckoned over both orders: a list whose first is nearly always the
better one would else make two people who see that look as if they agreed by chance alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fledge.evals.score import LEVEL, RESAMPLES, Score

Array: TypeAlias = NDArray[np.float64]
Mirror: TypeAlias = Mapping[Any, Hashable]

AS_THEY_ARE: Mirror = {}

FEWEST_DEFINED = 0.9  # of the resamples; where more of them have no value, an interval would be of the others alone

# R resamples, C labels, P patterns (ways in which a thing was labelled)


def cohen_kappa(
    one: Sequence[Hashable], other: Sequence[Hashable], seed: int = 0, mirror: Mirror = AS_THEY_ARE
) -> Score | None:
    """(observed - expected agreement) / (1 - expected) of two people's labels of the same things, in the same order.

    `n` is the number of things; the interval is a bootstrap over them. None where there are none, or where both gave
    one and the same label throughout, so that chance agrees as well. Raises ValueError for unequal lengths.
    Source: Cohen 1960, A coefficient of agreement for nominal scales, eq. 1."""
    if len(one) != len(other):
        raise ValueError(f"labels: expected as many of either, got {len(one)} and {len(other)}")
    if not one:
        return None
    numbers = numbered([*one, *other], mirror)
    order = mirrored(numbers, mirror)
    counts = np.zeros((1, len(numbers), len(numbers)))
    for mine, theirs in zip(one, other, strict=True):
        counts[0, numbers[mine], numbers[theirs]] += 1
    drawn = np.random.default_rng(seed).multinomial(len(one), counts.ravel() / len(one), RESAMPLES)
    resamples = drawn.reshape(RESAMPLES, *counts.shape[1:]).astype(float)
    return score(kappas(counts, order), kappas(resamples, order), len(one))


def kappas(counts_RCC: Array, order: list[int]) -> Array:
    """Kappa of each table of counts, NaN where it has none. `order`: each label's mirror image."""
    counts_RCC = (counts_RCC + counts_RCC[:, order][:, :, order]) / 2
    n = counts_RCC.sum(axis=(1, 2))
    observed = np.trace(counts_RCC, axis1=1, axis2=2) / n
    expected = (counts_RCC.sum(axis=1) * counts_RCC.sum(axis=2)).sum(axis=1) / n**2
    return ratio(observed - expected, 1 - expected)


def krippendorff_alpha(
    things: Iterable[Sequence[Hashable]], seed: int = 0, mirror: Mirror = AS_THEY_ARE
) -> Score | None:
    """1 - observed / expected disagreement. Of each thing the labels that it got, from however many people; who gave
    none is not there, and a thing with fewer than two says nothing.

    `n` is the number of things with two labels or more; the interval is a bootstrap over them. None where there are
    none, or where all labels are the same. Source: Krippendorff 2011, Computing Krippendorff's alpha-reliability,
    section C."""
    told = [Counter(labels) for labels in things if len(labels) > 1]
    numbers = numbered([label for counts in told for label in counts], mirror)
    order = mirrored(numbers, mirror)
    if not told:
        return None
    patterns = Counter(tuple(counts.get(label, 0) for label in numbers) for counts in told)
    labels_PC = np.array(list(patterns), float)
    times = np.array(list(patterns.values()), float)
    drawn = np.random.default_rng(seed).multinomial(len(told), times / len(told), RESAMPLES)
    return score(alphas(times[None], labels_PC, order), alphas(drawn.astype(float), labels_PC, order), len(told))


def alphas(times_RP: Array, labels_PC: Array, order: list[int]) -> Array:
    """Alpha where the pattern p stands times_RP[r, p] times; NaN where it has no value. `order`: as of `kappas`."""
    sizes = labels_PC.sum(axis=1)
    disagreeing = (sizes**2 - (labels_PC**2).sum(axis=1)) / (sizes - 1)  # ordered pairs of unlike labels, shared out
    labels_RC = times_RP @ labels_PC
    labels_RC = (labels_RC + labels_RC[:, order]) / 2
    n = labels_RC.sum(axis=1)
    return 1 - ratio((n - 1) * (times_RP @ disagreeing), n**2 - (labels_RC**2).sum(axis=1))


def numbered(labels: Sequence[Hashable], mirror: Mirror) -> dict[Hashable, int]:
    """Each label and mirror image with its place in a table."""
    images = [mirror.get(label, label) for label in labels]
    return {label: number for number, label in enumerate(dict.fromkeys([*labels, *images]))}


def mirrored(numbers: dict[Hashable, int], mirror: Mirror) -> list[int]:
    """The place of each label's mirror image."""
    return [numbers[mirror.get(label, label)] for label in numbers]


def ratio(above: Array, below: Array) -> Array:
    """above / below, NaN where nothing stands below (but for rounding)."""
    there = below > 1e-12
    return np.where(there, above / np.where(there, below, 1.0), np.nan)


def score(value: Array, drawn: Array, n: int) -> Score | None:
    """The figure with the percentiles of its resamples, those that have a value."""
    if np.isnan(value[0]):
        return None
    defined = drawn[~np.isnan(drawn)]
    if n == 1 or len(defined) < FEWEST_DEFINED * len(drawn):
        return Score(float(value[0]), n, None)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(float(value[0]), n, (float(low), float(high)))
