"""The figures of runs/compare's table, from files of answers and logs of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from task import read_rows, worth

from fledge.evals.score import mean_score


@dataclass(frozen=True)
class Measured:
    """One method under one seed. `worth`: of each held-out prompt, the mean true reward of its answers; `kl`: nats a
    token from the base, `kl_is_bound` where only that it isn't more is known; `entropy`: nats a token, None where the
    answers come from no single model; `tokens`: of an answer, its end among them; `samples`: answers of models that
    training took, by whatever the method needs; `each`: answers sampled to give one."""

    worth: Mapping[str, float]
    kl: float
    entropy: float | None
    tokens: float
    cpu_seconds: float
    samples: int
    each: int = 1
    kl_is_bound: bool = False


def measured_answers(path: Path, cpu_seconds: float, samples: int) -> Measured:
    """From the answers that `fledge align measure` wrote. KL: the mean of log π/π_ref over their tokens."""
    rows = read_rows(path)
    n_tokens = sum(len(row["token_ids"]) for row in rows)
    away = sum(sum(row["old"]) - sum(row["reference"]) for row in rows)
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"].split(", ")[-1], []).append(row["reward"])
    return Measured(
        {prompt: sum(rewards) / len(rewards) for prompt, rewards in by_prompt.items()},
        away / n_tokens,
        sum(sum(row["entropy"]) for row in rows) / n_tokens,
        n_tokens / len(rows),
        cpu_seconds,
        samples,
    )


def measured_best(path: Path, prompts: Path, n: int, cpu_seconds: float, samples: int) -> Measured:
    """From the answers that `fledge align best-of` kept, each the best of `n` by a reward; what they are truly worth is
    counted here. A prompt without one is worth 0. Their distribution is at most log n - (n - 1) / n nats an answer from
    the base's (Beirami et al. 2024, arXiv 2401.01879)."""
    said = {row["messages"][0]["content"]: row["messages"][-1]["content"] for row in read_rows(path)}
    asked = [row["messages"][0]["content"] for row in read_rows(prompts)]
    tokens = sum(len(answer) + 1 for answer in said.values()) / len(said)
    found = {f"line {i}": worth(word, said[word]) if word in said else 0.0 for i, word in enumerate(asked, 1)}
    return Measured(found, (math.log(n) - (n - 1) / n) / tokens, None, tokens, cpu_seconds, samples, n, True)


def row(name: str, seeds: Sequence[Measured], optimum: float) -> dict[str, Any]:
    """A line of the table: `share`, the mean true reward over the best possible, its 95 % interval over prompts (each
    prompt the mean of its seeds, bootstrap), the seeds' own shares, and the means of the rest."""
    prompts = sorted(seeds[0].worth)
    shares = [float(np.mean([one.worth[prompt] for one in seeds])) / optimum for prompt in prompts]
    score = mean_score(shares, seed=1)
    entropies = [one.entropy for one in seeds if one.entropy is not None]
    return {
        "method": name,
        "share": score.value,
        "interval": score.interval,
        "seeds": [float(np.mean(list(one.worth.values()))) / optimum for one in seeds],
        "kl": float(np.mean([one.kl for one in seeds])),
        "kl_is_bound": seeds[0].kl_is_bound,
        "entropy": float(np.mean(entropies)) if entropies else None,
        "tokens": float(np.mean([one.tokens for one in seeds])),
        "cpu_seconds": float(np.mean([one.cpu_seconds for one in seeds])),
        "samples": seeds[0].samples,
        "each": seeds[0].each,
    }


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_rows(run / "log.jsonl") if event["kind"] == kind]


def cpu_seconds(run: Path) -> float:
    """Of a run that was trained in one go."""
    return float(events(run, "end")[-1]["cpu_seconds"])


def hacking(name: str, run: Path) -> dict[str, Any]:
    """What an arm of the demonstration did: its rollouts' figures, and the rollout whose alarm came first."""
    rollouts = events(run, "rollout")
    kept = ("reward", "judge", "answer_tokens", "entropy", "kl", "repetition")
    alarms = events(run, "alarm")
    return {
        "arm": name,
        "rollouts": [{key: one[key] for key in kept} for one in rollouts],
        "alarms": len(alarms),
        "first_alarm": alarms[0]["rollout"] if alarms else None,
        "alarm_text": alarms[0]["text"] if alarms else "",
        "last_answer": rollouts[-1]["text"],
    }
