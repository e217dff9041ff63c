"""runs/compare's figures as one page that loads nothing."""

from __future__ import annotations

from typing import Any

import fledge
from fledge.evals.score import METHOD
from fledge.train.markup import Child, Html, join, table, tag
from fledge.train.page import page_head
from fledge.train.plot import Chart, Line, figure

STYLE = """
th, td { padding-right: .7rem } th { vertical-align: bottom } th.number { white-space: normal; max-width: 6.5rem }
td:last-child, th:last-child { padding-right: 0 }
.scroll { margin-bottom: .8rem } .charts + .scroll { margin-top: 1rem }
"""
HEAD = ("method", "share of the best", "95 %", "seeds", "KL, nats a token", "tokens", "entropy, nats a token",
        "CPU seconds", "answers sampled")  # fmt: skip
ARM_HEAD = (
    "",
    "rollout",
    "reward trained on",
    "judge",
    "tokens",
    "entropy",
    "KL, nats a token",
    "repetition",
    "first alarm",
)


def page(found: dict[str, Any]) -> str:
    """The whole page, from what compare.json holds."""
    title = "Methods of alignment on one task"
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", introduction(found), class_="quiet")),
        tag("section", tag("h2", "The methods side by side"), methods(found), *notes(found)),
        tag("section", tag("h2", "A reward that is hacked"), *hacked(found["hacking"])),
        tag("footer", tag("p", f"Written by fledge {fledge.__version__}, runs/compare/compare.py.", class_="quiet")),
    )
    return f"<!doctype html>\n{tag('html', page_head(title, STYLE), body, lang='en')}\n"


def introduction(found: dict[str, Any]) -> str:
    return (
        "Write four letters again. An answer is worth the share of its letters that are right, nothing if it has more "
        f"or fewer than four; the best expected reward is {found['optimum']:g}. Preference pairs are answers of the "
        "base model, labelled by that reward; DPO and the reward model learn from the same pairs, GRPO from the reward "
        "itself."
    )


def methods(found: dict[str, Any]) -> Html:
    rows: list[tuple[Child, ...]] = []
    for one in found["methods"]:
        low, high = one["interval"]
        each = f" + {one['each']} an answer" if one["each"] > 1 else ""
        rows.append(
            (
                one["method"],
                f"{100 * one['share']:.1f} %",
                f"{100 * low:.1f} to {100 * high:.1f}",
                " · ".join(f"{100 * share:.1f}" for share in one["seeds"]),
                f"{'≤ ' if one['kl_is_bound'] else ''}{one['kl']:.3f}",
                f"{one['tokens']:.2f}",
                "–" if one["entropy"] is None else f"{one['entropy']:.3f}",
                f"{one['cpu_seconds']:.0f}",
                f"{one['samples']:,}{each}",
            )
        )
    return table(HEAD, rows, tuple(range(1, len(HEAD))))


def notes(found: dict[str, Any]) -> list[Html]:
    right = ", ".join(f"{100 * value:.1f} %" for value in found["reward_accuracy"])
    shares = (
        f"Share: true reward of answers to held-out prompts, over the best; interval: {METHOD}, each prompt the mean "
        "of its seeds. Tokens count the end of the answer. CPU seconds are a seed's, the reward model's among them "
        f"where a method needs it; the base model, the same for all, took {found['base_cpu_seconds']:.0f}."
    )
    learned = (
        f"The reward model is right on {right} of held-out pairs (seeds {', '.join(map(str, found['seeds']))}). The KL "
        "of best of n is its upper bound, log n - (n - 1) / n an answer; its answers come from no single model, so "
        "that no entropy is told."
    )
    return [tag("p", shares, class_="quiet"), tag("p", learned, class_="quiet")]


def hacked(arms: list[dict[str, Any]]) -> list[Html]:
    told = (
        "PPO on a flawed reward: right letters count wherever the answer ends, and length counts by itself. The judge, "
        "on which nothing is trained, is the true reward. The watch compares the first rollouts with the last."
    )
    charts = [figure(chart(name, key, arms)) for name, key in CHARTS]
    rows: list[tuple[Child, ...]] = []
    for arm in arms:
        first, last = arm["rollouts"][0], arm["rollouts"][-1]
        rows += [arm_row(arm["arm"], 0, first, ""), arm_row("", len(arm["rollouts"]) - 1, last, alarm_of(arm))]
    best = "best rewarded answer of the last rollout: "
    answers = [tag("p", f"{arm['arm']}, {best}", tag("code", arm["last_answer"]), class_="quiet") for arm in arms]
    alarms = [
        tag("p", f"{arm['arm']}, alarm of rollout {arm['first_alarm']}: {arm['alarm_text']}.", class_="quiet")
        for arm in arms
        if arm["alarms"]
    ]
    return [tag("p", told, class_="quiet"), tag("div", join(*charts), class_="charts"),
            table(ARM_HEAD, rows, tuple(range(1, len(ARM_HEAD)))), *answers, *alarms]  # fmt: skip


CHARTS = (("Reward trained on", "reward"), ("Judge", "judge"), ("Tokens an answer", "answer_tokens"),
          ("KL, nats a token", "kl"))  # fmt: skip


def chart(title: str, key: str, arms: list[dict[str, Any]]) -> Chart:
    lines = tuple(
        Line(arm["arm"], tuple((float(n), one[key]) for n, one in enumerate(arm["rollouts"])), f"run{6 - 4 * i}")
        for i, arm in enumerate(arms)
    )
    return Chart(title, lines, x_name="rollout")


def arm_row(name: str, number: int, one: dict[str, float], alarm: str) -> tuple[Child, ...]:
    keys = ("reward", "judge", "answer_tokens", "entropy", "kl", "repetition")
    return (name, number, *(f"{one[key]:.3f}" for key in keys), alarm)


def alarm_of(arm: dict[str, Any]) -> str:
    return "none" if arm["first_alarm"] is None else f"rollout {arm['first_alarm']}"
