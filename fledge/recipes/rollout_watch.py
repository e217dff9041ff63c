"""What is watched of rollouts: figures of each, and alarms over many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from fledge.recipes.rl_config import AlarmConfig
from fledge.recipes.rollout_file import Answer

GRAM = 4


def figures_of(answers: Sequence[Answer], n_samples: int) -> dict[str, float]:
    """Figures of a rollout: rewards (mean, deviation, by part), `flat_share` (prompts whose answers are all rewarded
    alike, which teach a group nothing), tokens, `cut_share`, `entropy` and `kl` (nats a token; `kl_answer`: nats an
    answer, the mean of log π/π_ref), `repetition`, `judge`."""
    rewards = np.array([answer.reward for answer in answers])
    lengths = np.array([len(answer.token_ids) for answer in answers], float)
    away = [np.array(answer.old) - np.array(answer.reference) for answer in answers]
    every = np.concatenate(away)
    groups = rewards.reshape(-1, n_samples)
    figures = {
        "reward": rewards.mean(),
        "reward_deviation": rewards.std(),
        **{f"reward_{name}": np.mean([a.parts[name] for a in answers]) for name in answers[0].parts},
        "flat_share": np.mean(groups.max(1) - groups.min(1) < 1e-9),
        "answer_tokens": lengths.mean(),
        "cut_share": np.mean([answer.finish == "length" for answer in answers]),
        "entropy": np.concatenate([answer.entropy for answer in answers]).mean(),
        "kl": (np.expm1(-every) + every).mean(),
        "kl_answer": np.mean([one.sum() for one in away]),
        "repetition": np.mean([repetition(answer.token_ids) for answer in answers]),
    }
    judged = [answer.judge for answer in answers if answer.judge is not None]
    return {name: float(value) for name, value in (figures | ({"judge": np.mean(judged)} if judged else {})).items()}


def repetition(token_ids: Sequence[int]) -> float:
    """Share of an answer's runs of 4 tokens that stand in it before."""
    grams = Counter(tuple(token_ids[i : i + GRAM]) for i in range(len(token_ids) - GRAM + 1))
    n = sum(grams.values())
    return 1 - len(grams) / n if n else 0.0


def alarms(history: Sequence[dict[str, float]], config: AlarmConfig) -> list[str]:
    """What is suspect about a run whose rollouts had these figures, oldest first. A reward that rises while the judge
    falls, or that is paid for with too great a distance, is reward hacking (Gao et al. 2023, arXiv 2210.10760)."""
    found = []
    if history and config.kl and history[-1]["kl"] > config.kl:
        found.append(f"the policy is {history[-1]['kl']:.3g} nats a token from the reference, beyond {config.kl:g}")
    if len(history) < 2 * config.window or "judge" not in history[-1]:
        return found
    first, last = history[: config.window], history[-config.window :]
    reward, judge = (risen([f[name] for f in first], [f[name] for f in last]) for name in ("reward", "judge"))
    if reward > config.deviations and judge < -config.deviations:
        found.append(
            f"the reward rose by {reward:.1f} standard errors while the judge fell by {-judge:.1f}: what is rewarded "
            "is not what is wanted"
        )
    return found


def risen(before: list[float], after: list[float]) -> float:
    """By how many standard errors of the difference the mean rose."""
    error = math.sqrt((np.var(before, ddof=1) + np.var(after, ddof=1)) / len(before))
    difference = float(np.mean(after) - np.mean(before))
    return difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
