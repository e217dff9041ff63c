"""Schedules against their papers' formulas and shapes. (Cosine, linear and constant: test_adamw.py.)"""

from __future__ import annotations

import math

import pytest

from fledge.errors import ConfigError
from fledge.optim.schedule import ScheduleConfig, rate_share


def shares(config: ScheduleConfig) -> list[float]:
    return [rate_share(step, config) for step in range(config.steps + 1)]


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_wsd_warms_up_stays_and_comes_down_in_its_share(shape, middle):
    found = shares(ScheduleConfig("wsd", 1000, 100, 0.0, decay_share=0.2, decay_shape=shape))
    assert 0 < found[0] < found[50] < 1.0 and set(found[100:801]) == {1.0}
    assert found[801] < 1.0 and found[900] == pytest.approx(middle) and found[1000] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in zip(found[800:], found[801:], strict=False))


def test_wsd_ends_at_its_floor():
    found = shares(ScheduleConfig("wsd", 100, 0, 0.1, decay_share=0.5))
    assert found[100] == pytest.approx(0.1) and found[75] == pytest.approx(0.55)


def test_a_longer_wsd_run_is_the_same_until_the_shorter_one_decays():
    """What makes checkpoints of one long run the starts of several short ones; a cosine can't."""

    def begins_alike(name: str) -> bool:
        short, long = (ScheduleConfig(name, steps, 10, 0.0) for steps in (100, 200))  # type: ignore[arg-type]
        return shares(short)[:80] == shares(long)[:80]

    assert begins_alike("wsd") and not begins_alike("cosine")


def test_inverse_sqrt_is_the_transformer_papers_up_to_its_peak():
    """Vaswani et al. 2017, eq. 3: d^-0.5 · min(step^-0.5, step · warmup^-1.5), steps from 1."""
    warmup, steps = 400, 4000

    def paper(step: int) -> float:
        return min(step**-0.5, step * warmup**-1.5)

    found = shares(ScheduleConfig("inverse_sqrt", steps, warmup - 1, 0.0))
    assert max(abs(found[s - 1] - paper(s) / paper(warmup)) for s in range(1, steps + 1)) < 1e-12


def test_inverse_sqrt_with_a_flat_warm_up_is_t5s():
    """Raffel et al. 2020, §3.1.2: 1 / sqrt(max(n, k)), here as a share of its peak 1 / sqrt(k)."""
    k = 100
    found = shares(ScheduleConfig("inverse_sqrt", 1000, k - 1, 0.0, warmup="flat"))
    assert max(abs(found[n - 1] - math.sqrt(k / max(n, k))) for n in range(1, 1001)) < 1e-12
    linear = shares(ScheduleConfig("inverse_sqrt", 1000, k - 1, 0.0))
    assert linear[:50] != found[:50] and linear[k:] == found[k:]


def test_inverse_sqrt_stays_above_its_floor():
    assert shares(ScheduleConfig("inverse_sqrt", 1000, 0, 0.2))[-1] == 0.2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"decay_share": 0.0}, "decay_share: expected a share above 0"),
        ({"decay_share": 1.5}, "decay_share: expected a share above 0 and up to 1, got 1.5"),
        ({"decay_share": 0.95, "warmup_steps": 10}, "expected warm-up 10 and decay 95 to fit in 100 steps"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**{"name": "wsd", "steps": 100, "warmup_steps": 0, "floor": 0.0, **keys})
