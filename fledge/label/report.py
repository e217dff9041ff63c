"""`fledge label report`: how far the labelling is, how far annotators agree, whether the place on the page matters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

from fledge.evals.agreement import cohen_kappa, krippendorff_alpha
from fledge.evals.score import Score
from fledge.evals.share import share_score
from fledge.label.blind import FIRST, SECOND, SKIP, TIE, first_shown_won
from fledge.label.config import LabelReportConfig
from fledge.label.places import open_labels
from fledge.label.store import Store, Vote
from fledge.label.summary import summary

SEED = 0  # of the intervals' resamples
MIRROR = {FIRST: SECOND, SECOND: FIRST}


def report_labels(config: LabelReportConfig, json: bool = False) -> dict[str, Any]:
    """The figures; printed as tables unless the caller prints them as one line."""
    store = open_labels(config.labels)
    try:
        found = {"labels": store.place, "pairs": store.meta()["pairs"], **figures(store.votes(), store.n_items())}
        found["with_file"] = with_file(store)
    finally:
        store.close()
    if not json:
        print(summary(found))
    return found


def figures(votes: Sequence[Vote], n_items: int) -> dict[str, Any]:
    """What the page shows too. A figure is {value, n, interval}, or None where it has no value."""
    by_annotator: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_annotator[vote.annotator].append(vote)
    return {
        "items": n_items,
        "votes": len(votes),
        "annotators": {name: person(own, n_items) for name, own in sorted(by_annotator.items())},
        "first_shown": position(votes),
        "agreement": agreement(by_annotator),
        "reasons": dict(Counter(reason for vote in votes for reason in vote.reasons).most_common()),
    }


def person(votes: Sequence[Vote], n_items: int) -> dict[str, Any]:
    """One annotator's progress, position bias and seconds per item (those that the page was seen)."""
    choices, seconds = Counter(vote.choice for vote in votes), [vote.seconds for vote in votes]
    return {
        "done": len(votes),
        "left": n_items - len(votes),
        "preferred": len(votes) - choices[TIE] - choices[SKIP],
        "ties": choices[TIE],
        "skipped": choices[SKIP],
        "seconds_median": round(median(seconds), 2),
        "seconds_mean": round(fmean(seconds), 2),
        "first_shown": position(votes),
    }


def position(votes: Sequence[Vote]) -> dict[str, Any] | None:
    """Share of preferences for the answer that stood left: 0.5 where its place doesn't matter."""
    won = [first_shown_won(vote.choice, vote.swapped) for vote in votes]
    told = [one for one in won if one is not None]
    return plain(share_score(sum(told), len(told)))


def agreement(by_annotator: dict[str, list[Vote]]) -> dict[str, Any]:
    """Of judgements: a tie is a label of its own, a skip is none. `pairs`: Cohen's kappa of each two annotators over
    the items that both judged; `alpha`: Krippendorff's, of all annotators. Which answer is an item's first is the
    file's whim, so chance is reckoned over both orders."""
    labels = {
        name: {vote.item: vote.choice for vote in votes if vote.choice != SKIP} for name, votes in by_annotator.items()
    }
    pairs = []
    for one, other in combinations(sorted(labels), 2):
        common = sorted(labels[one].keys() & labels[other].keys())
        mine, theirs = ([labels[name][item] for item in common] for name in (one, other))
        same = sum(a == b for a, b in zip(mine, theirs, strict=True))
        observed, kappa = share_score(same, len(common)), cohen_kappa(mine, theirs, SEED, MIRROR)
        entry = {"annotators": [one, other], "n": len(common)}
        pairs.append({**entry, "same": plain(observed), "kappa": plain(kappa)})
    things: dict[int, list[str]] = defaultdict(list)
    for own in labels.values():
        for item, choice in own.items():
            things[item].append(choice)
    return {"pairs": pairs, "alpha": plain(krippendorff_alpha(things.values(), SEED, MIRROR))}


def with_file(store: Store) -> dict[str, Any] | None:
    """Share of preferences that are the file's own, of its pairs of chosen and rejected. The page doesn't show it: who
    watched it from vote to vote would learn which answer is which."""
    ranked = {number for number, item in store.items().items() if item.ranked}
    choices = [vote.choice for vote in store.votes() if vote.item in ranked and vote.choice not in (TIE, SKIP)]
    return plain(share_score(choices.count(FIRST), len(choices)))


def plain(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else score.as_dict()
