"""Agreement between people, by published examples, the formulas word for word, and what has no value."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from sklearn.metrics import cohen_kappa_score

from fledge.evals.agreement import cohen_kappa, krippendorff_alpha
from fledge.evals.share import share_score

# Krippendorff 2011, section C: four observers, twelve units, `.` for no label; nominal alpha 0.743.
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def units(*observers: str) -> list[list[str]]:
    """Of each unit the labels that it got."""
    return [[label for label in unit if label != "."] for unit in zip(*map(str.split, observers), strict=True)]


def crossed(yes_yes: int, yes_no: int, no_yes: int, no_no: int) -> tuple[list[str], list[str]]:
    """Two people's labels from their table."""
    pairs = [("y", "y")] * yes_yes + [("y", "n")] * yes_no + [("n", "y")] * no_yes + [("n", "n")] * no_no
    return [one for one, _ in pairs], [other for _, other in pairs]


def test_alpha_of_krippendorffs_four_observers_is_his():
    found = krippendorff_alpha(units(*OBSERVERS))
    assert found is not None
    assert round(found.value, 3) == 0.743
    assert found.n == 11  # the twelfth unit has one label alone
    assert found.interval is not None and found.interval[0] < found.value <= found.interval[1]


def test_alpha_of_his_two_observers_is_his():
    """Sections A and B of the same paper: two labels, and five."""
    two = krippendorff_alpha(units("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"))
    five = krippendorff_alpha(units("a a b b d c c c e d d a", "b a b b b c c c e d d d"))
    assert two is not None and round(two.value, 3) == 0.095
    assert five is not None and round(five.value, 3) == 0.692


def test_one_label_changed_changes_alpha():
    """The control: the example's figure hangs on every label."""
    changed = krippendorff_alpha(units(*OBSERVERS[:3], OBSERVERS[3].replace("5", "3")))
    assert changed is not None and round(changed.value, 3) != 0.743


@pytest.mark.parametrize(
    ("table", "kappa"),
    [((20, 5, 10, 15), 0.4), ((45, 15, 25, 15), 0.1304), ((25, 35, 5, 35), 0.2593)],
    ids=["fifty proposals", "sixty agree", "sixty agree, other totals"],
)
def test_kappa_of_the_textbook_tables(table, kappa):
    """The examples by which the coefficient is commonly taught: 2 by 2 tables of readers' yes and no."""
    found = cohen_kappa(*crossed(*table))
    assert found is not None and found.n == sum(table)
    assert round(found.value, 4) == pytest.approx(kappa)


def test_kappa_of_three_labels():
    """scikit-learn's own example of cohen_kappa_score: 0.6875."""
    one = ["negative", "positive", "negative", "neutral", "positive"]
    other = ["negative", "positive", "negative", "neutral", "negative"]
    found = cohen_kappa(one, other)
    assert found is not None and found.value == pytest.approx(0.6875)


def direct_kappa(one: list[str], other: list[str]) -> float:
    """Cohen's eq. 1 label by label."""
    n = len(one)
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    expected = sum(one.count(label) / n * other.count(label) / n for label in {*one, *other})
    return (observed - expected) / (1 - expected)


def direct_alpha(things: list[list[str]]) -> float:
    """Ordered pairs of labels, within things and over all of them."""
    told = [labels for labels in things if len(labels) > 1]
    every = [label for labels in told for label in labels]
    within = sum(sum(a != b for a, b in permutations(labels, 2)) / (len(labels) - 1) for labels in told)
    over = sum(a != b for a, b in permutations(every, 2))
    return 1 - within / len(every) * (len(every) * (len(every) - 1)) / over


def test_random_labels_have_the_formulas_values():
    draw = random.Random(3)
    for _ in range(30):
        one, other = (draw.choices("abc", [4, 2, 1], k=draw.randint(5, 60)) for _ in range(2))
        n = min(len(one), len(other))
        one, other = one[:n], other[:n]
        things = [draw.choices("abc", [4, 2, 1], k=draw.randint(0, 4)) for _ in range(n)]
        kappa, alpha = cohen_kappa(one, other), krippendorff_alpha(things)
        assert kappa is not None and kappa.value == pytest.approx(direct_kappa(one, other), abs=1e-12)
        assert alpha is not None and alpha.value == pytest.approx(direct_alpha(things), abs=1e-12)


def turned(labels: str, which: list[bool]) -> str:
    """`labels` with a and b exchanged where `which` says so, c as it is."""
    return "".join(a.translate(str.maketrans("ab", "ba")) if turn else a for a, turn in zip(labels, which, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_random_labels_have_the_kappa_of_scikit_learn(seed):
    chance, weights = random.Random(seed), [3, 2, 1]
    one, other = (chance.choices("abc", weights, k=40) for _ in range(2))
    other = [a if chance.random() < 0.4 else b for a, b in zip(one, other, strict=True)]
    found = cohen_kappa(one, other)
    assert found is not None and found.value == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
    assert found.value != pytest.approx(cohen_kappa_score(one, one), abs=1e-3)  # the control


def test_with_a_mirror_the_order_of_each_thing_does_not_matter():
    draw, mirror = random.Random(7), {"a": "b", "b": "a"}
    one, other = ("".join(draw.choices("abc", [8, 1, 1], k=50)) for _ in range(2))
    which = [draw.random() < 0.5 for _ in one]
    there = turned(one, which), turned(other, which)
    assert cohen_kappa(one, other, 0, mirror) is not None
    kappas = [cohen_kappa(*pair, 0, mirror).value for pair in ((one, other), there)]  # type: ignore[union-attr]
    alphas = [krippendorff_alpha(list(zip(*pair, strict=True)), 0, mirror) for pair in ((one, other), there)]
    assert kappas[0] == pytest.approx(kappas[1])
    assert alphas[0].value == pytest.approx(alphas[1].value)
    everything = [True] * len(one)  # by the definition: each thing in both orders
    assert kappas[0] == pytest.approx(
        direct_kappa([*one, *turned(one, everything)], [*other, *turned(other, everything)])
    )
    plain = [cohen_kappa(*pair).value for pair in ((one, other), there)]
    assert plain[0] != pytest.approx(plain[1])  # the control


def test_full_agreement_is_1_and_full_disagreement_below_0():
    agree, disagree = cohen_kappa("ab" * 20, "ab" * 20), cohen_kappa("ab" * 20, "ba" * 20)
    assert agree is not None and agree.value == 1 and agree.interval == (1, 1)
    assert disagree is not None and disagree.value == -1
    same = krippendorff_alpha(["aa", "bb", "ab"])
    assert same is not None and same.value < 1


@pytest.mark.parametrize("one", ["", "aaaa"], ids=["nothing in common", "all the same label"])
def test_kappa_without_a_value_is_none(one):
    assert cohen_kappa(one, one) is None


@pytest.mark.parametrize(
    "things", [[], ["a", "b", ""], ["aa", "aaa"]], ids=["nothing", "one person a thing", "all the same label"]
)
def test_alpha_without_a_value_is_none(things):
    assert krippendorff_alpha(things) is None


def test_one_thing_has_no_interval():
    found = krippendorff_alpha(["ab"])
    assert found is not None and found.interval is None and found.value == 0


def test_few_things_whose_resamples_often_have_no_value_have_no_interval():
    found = cohen_kappa("abab", "abab")
    assert found is not None and found.value == 1 and found.interval is None


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="expected as many of either, got 2 and 1"):
        cohen_kappa("ab", "a")


def test_the_interval_holds_the_true_kappa_about_as_often_as_it_says():
    draw = random.Random(11)
    truth, held = 0.8, 0  # two labels, equally frequent; the other repeats the label or draws anew
    for number in range(100):
        one = draw.choices("ab", k=150)
        other = [label if draw.random() < truth else draw.choice("ab") for label in one]
        found = cohen_kappa(one, other, seed=number)
        assert found is not None and found.interval is not None
        held += found.interval[0] <= truth <= found.interval[1]
    assert 88 <= held <= 100


@pytest.mark.parametrize(
    ("count", "n", "interval"), [(5, 10, (0.2366, 0.7634)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0))]
)
def test_wilsons_interval(count, n, interval):
    """Against Newcombe's tables of the method (score method without continuity correction)."""
    found = share_score(count, n)
    assert found is not None and found.interval == pytest.approx(interval, abs=1e-4)


def test_a_share_of_nothing_is_none_and_of_less_than_nothing_refused():
    assert share_score(0, 0) is None
    with pytest.raises(ValueError, match="expected 0..3, got 4"):
        share_score(4, 3)
