"""`fledge lr-range`: which learning rates a pre-training learns at, before it is run."""

from __future__ import annotations

import json as json_text
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fledge
from fledge import device as devices
from fledge.lineage import check_writable, make_folder, write_text_durably
from fledge.log import Progress, json_safe
from fledge.recipes.config import LrRangeConfig
from fledge.recipes.pretrain import fresh_recipe
from fledge.train.markup import table, tag
from fledge.train.page import page_head
from fledge.train.plot import Chart, Line, figure
from fledge.train.range_test import Suggestion, Tried, range_test, suggestion
from fledge.train.trial import trial_loop

FIGURES, PAGE = "range.json", "range.html"


def lr_range(config: LrRangeConfig, json: bool = False) -> dict[str, Any]:
    """Try growing rates on initial weights that are then thrown away; write range.json and range.html under `out`.

    Gives `suggested`, `steepest` and `diverged` rates and the paths. Raises DataError if the loss never falls.
    """
    check_writable(config.out)
    make_folder(config.out)
    device = devices.pick(config.train.device, "float32", config.train.threads)
    recipe = fresh_recipe(config, config.out)
    recipe.model.to(device.device)
    asked = config.range
    plain = replace(config.train, steps=asked.steps, schedule="constant", warmup_steps=0, ema_decay=0.0,
                    publish_ema=False, non_finite="stop", spike="off", micro_rows=rows_at_once(config))  # fmt: skip
    loop = trial_loop(recipe, plain, device)
    progress, tried = Progress("rate", asked.steps), list[Tried]()
    for one in range_test(loop, asked.low, asked.high, asked.steps, asked.smoothing):
        tried.append(one)
        progress.update(len(tried), rate=f"{one.rate:.2e}", loss=f"{one.smoothed:.3f}")
    progress.close()
    found = suggestion(tried)
    figures = json_safe({**asdict(found), "tried": [asdict(one) for one in tried]})
    write_text_durably(config.out / FIGURES, json_text.dumps(figures, indent=1, allow_nan=False) + "\n")
    write_text_durably(config.out / PAGE, page(tried, found, config.out))
    result = {**asdict(found), "steps": len(tried), "figures": str(config.out / FIGURES),
              "page": str(config.out / PAGE)}  # fmt: skip
    if not json:
        print(f"train.learning_rate={found.suggested:.2e} (steepest at {found.steepest:.2e}, {end_of(found)}); {PAGE}")
    return result


def rows_at_once(config: LrRangeConfig) -> int:
    """As the run would; all where that is not known yet."""
    return config.train.micro_rows if isinstance(config.train.micro_rows, int) else 0


def end_of(found: Suggestion) -> str:
    return "no divergence up to range.high" if found.diverged is None else f"diverged at {found.diverged:.2e}"


def page(tried: Sequence[Tried], found: Suggestion, out: Path) -> str:
    """One self-contained page: the losses over the rate, and what they say."""
    title = f"{out.name} - learning-rate range test"
    lines = (
        Line("each step", tuple((math.log10(one.rate), one.loss) for one in tried), "faint"),
        Line("smoothed", tuple((math.log10(one.rate), one.smoothed) for one in tried)),
    )
    rows: list[tuple[Any, ...]] = [
        ("suggested", f"{found.suggested:.3g}", "the steepest rate, at most a tenth of the diverging one"),
        ("steepest", f"{found.steepest:.3g}", "the smoothed loss falls fastest here"),
        ("diverged", "nowhere" if found.diverged is None else f"{found.diverged:.3g}", "5 % above where it began"),
    ]
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", f"{len(tried)} steps from initial weights.", class_="quiet")),
        tag("section", table(("rate", "value", "meaning"), rows, (1,))),
        tag("section", figure(Chart("Loss", lines, x_name="log10 of the rate", y_name="nats per token"))),
        tag("footer", tag("p", f"Written by fledge {fledge.__version__}.", class_="quiet")),
    )
    return f"<!doctype html>\n{tag('html', page_head(title), body, lang='en')}\n"
