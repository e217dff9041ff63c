"""Preferences from files to items: read, held out, rendered, fitted into rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fledge.data.preference_batches import Fitted, Item, answer_of, fitted
from fledge.errors import DataError
from fledge.log import say
from fledge.recipes.preference_config import PreferenceDataConfig
from fledge.recipes.sft import training_and_held_out
from fledge.text.chat import ChatRenderer, Rendered
from fledge.text.preferences import Judged, Preference, read_judged, read_preferences, render_answer


@dataclass(frozen=True)
class Items:
    """Items to train on, then those held out: the first `n_training` of `found`. `values` [all]: of a pair its margin,
    of a judged answer 1 if it is good, else 0."""

    found: list[Item]
    n_training: int
    values: Tensor
    fates: tuple[Fitted, ...] = ()
    """What became of the rows to train on, and of those held out."""

    @property
    def training(self) -> list[Item]:
        return self.found[: self.n_training]

    @property
    def held_out(self) -> list[Item]:
        return self.found[self.n_training :]


def pairs(data: PreferenceDataConfig, renderer: ChatRenderer, most_tokens: int) -> Items:
    """Items of two answers, the chosen one first, each of at most `most_tokens`."""

    def rendered(pair: Preference) -> list[Rendered]:
        sides = ((pair.chosen, "chosen"), (pair.rejected, "rejected"))
        return [render_answer(renderer, pair.prompt, side, f"{pair.at}, {name}") for side, name in sides]

    return gathered(
        data, read_preferences, rendered, lambda pair: pair.margin or 0.0, most_tokens, "pairs", mismatched=None
    )


def judged(data: PreferenceDataConfig, renderer: ChatRenderer, most_tokens: int) -> Items:
    """Items of two answers: the row's own, and that of another prompt in its place."""

    def rendered(one: Judged) -> list[Rendered]:
        return [render_answer(renderer, one.prompt, one.answer, one.at)]

    def other(one: Judged, another: Judged) -> Rendered:
        return render_answer(renderer, one.prompt, another.answer, one.at)

    return gathered(
        data, read_judged, rendered, lambda one: float(one.good), most_tokens, "judged answers", mismatched=other
    )


def gathered(
    data: PreferenceDataConfig,
    read: Callable[..., Any],
    rendered: Callable[[Any], list[Rendered]],
    value: Callable[[Any], float],
    most_tokens: int,
    what: str,
    mismatched: Callable[[Any, Any], Rendered] | None,
) -> Items:
    found: list[Item] = []
    values: list[float] = []
    fates = []
    split = training_and_held_out(data, read, what)
    for rows, name in zip(split, ("training", "held-out"), strict=True):
        here = fitted([rendered(row) for row in rows], most_tokens, data.too_long == "cut")
        say(told(here, len(rows), f"{name} {what}", most_tokens))
        if not here.items:
            cut = "" if data.too_long == "cut" else ", or set data.too_long=cut"
            raise DataError(
                f"data: expected {what} that fit in {most_tokens} tokens, found none of {len(rows)} {name} ones; raise "
                f"train.row_tokens{cut}"
            )
        items = here.items
        if mismatched is not None:
            kept = [rows[item.number - 1] for item in items]
            items = with_others(items, kept, [*kept, *split[0]], most_tokens, mismatched)
        found += items
        values += [value(rows[item.number - 1]) for item in items]
        fates.append(here)
    return Items(found, len(fates[0].items), torch.tensor(values), tuple(fates))


def told(here: Fitted, n_rows: int, what: str, most_tokens: int) -> str:
    return (
        f"{len(here.items):,} of {n_rows:,} {what}: {here.n_cut} cut to {most_tokens} tokens, {here.n_too_long} too "
        f"long and left out, {here.n_same} with the same answer twice left out"
    )


def with_others(
    items: Sequence[Item],
    rows: Sequence[Any],
    among: Sequence[Any],
    most_tokens: int,
    mismatched: Callable[[Any, Any], Rendered],
) -> list[Item]:
    """Each item, of its row, with an answer to another prompt beside its own: that of the next of `among`, in which the
    rows come first. Raises DataError where all prompts are the same."""
    made = []
    for place, (item, row) in enumerate(zip(items, rows, strict=True)):
        others = (among[(place + step) % len(among)] for step in range(1, len(among)))
        other = next((one for one in others if one.prompt != row.prompt), None)
        if other is None:
            raise DataError(f"{row.at}: expected answers to at least two prompts, got one; add some")
        made.append(replace(item, answers=(*item.answers, answer_of(mismatched(row, other), most_tokens))))
    return made
