"""The report's charts of one run: whatever its objective logs, with what happened to it on the time line. No torch."""

from __future__ import annotations

from fledge.train.markup import Child, Html, table, tag
from fledge.train.plot import Chart, Line, Point, figure
from fledge.train.record import PHASES, RunRecord, number
from fledge.train.stacks import stacked
from fledge.train.timeline import marks, time_in_bins, time_spent

STYLES = 8  # colours of the style sheet


def curves(run: RunRecord, several: bool) -> Html:
    """Losses, validation, learning rate, gradient norm, throughput and time over the steps."""
    happened = marks(run)
    loss = (
        Line("training", run.series("step", "loss")),
        Line("validation", validation(run, "val_loss"), "second", dots=True),
        Line("validation of averaged weights", run.series("evaluate", "ema_val_loss"), "faint", dots=True),
    )
    charts = [Chart("Loss", loss, y_name=unit_of(run), marks=happened)]
    charts += [chart for chart in more_charts(run) if chart.lines]
    charts += [
        Chart("Learning rate", (Line("learning rate", run.series("step", "learning_rate")),)),
        Chart("Gradient norm", (Line("gradient norm", run.series("step", "gradient_norm")),), log=True),
        Chart("Throughput", (Line("throughput", run.series("step", "tokens_per_second")),), y_name="tokens per second"),
    ]
    figures = [figure(chart) for chart in charts]
    spent = time_spent(run)
    if spent:
        figures.append(stacked("Time of a step", "seconds", time_in_bins(run), PHASES))
    skipped, resumed = run.last("step", "skipped") or 0, [event.get("step") for event in run.of("resume")]
    notes = [f"Steps left out for a non-finite loss or gradient: {skipped:.0f}." if skipped else ""]
    for key, what in (("overflows", "Steps that float16 left out for an overflow"), ("spikes", "Spikes met")):
        count = run.last("step", key) or 0
        notes.append(f"{what}: {count:.0f}." if count else "")
    notes.append(f"Continued at step {', '.join(map(str, resumed))}." if resumed else "")
    return tag(
        "section",
        tag("h2", f"Curves: {run.name}" if several else "Curves"),
        tag("div", *figures, class_="charts"),
        *(tag("p", note, class_="quiet") for note in notes if note),
        where_time_went(run, spent) if spent else None,
        mixture(run),
    )


def unit_of(run: RunRecord) -> str:
    """What a loss is counted in, by the objective."""
    if "preference" in run.config or "reward" in run.config:
        return "per pair"
    objective = str(run.config.get("objective", "causal"))
    if "+" in objective:
        return "nats, sum of two terms"
    one = {
        "masked": "masked token",
        "spans": "target token",
        "denoise": "target token",
        "prefix": "token after the prefix",
    }
    return f"nats per {one.get(objective, 'token')}"


def more_charts(run: RunRecord) -> list[Chart]:
    """What only some objectives log: terms of the loss, accuracies, further validation losses, sources of a mixture."""
    terms = named_lines(run, "step", lambda key: key.startswith("loss_"), "loss_")
    validated = [key for key in keys(run, "evaluate") if key.startswith("val_") and key != "val_loss"]
    accuracies = named_lines(
        run, "evaluate", lambda key: key in validated and key.endswith("_accuracy"), "val_", dots=True
    )
    others = [key for key in validated if key.endswith("_loss")]
    losses = named_lines(run, "evaluate", lambda key: key in others, "val_", dots=True) if len(others) > 1 else ()
    charts = [Chart("Terms of the loss", terms, y_name="nats"), Chart("Validation by term", losses, y_name="nats")]
    charts.append(Chart("Validation accuracy", accuracies, y_name="share right"))
    rewards = named_lines(run, "step", lambda key: key.startswith("reward_") and key != "reward_accuracy", "reward_")
    answers = named_lines(run, "step", lambda key: key.startswith("log_p_"), "log_p_")
    charts += [Chart("Rewards", rewards), Chart("Log-probability of answers", answers, y_name="nats")]
    for figure_name, title in (("val_loss", "Validation by source"), ("val_masked_accuracy", "Accuracy by source")):
        start = f"{figure_name}/"
        lines = named_lines(run, "evaluate", lambda key, start=start: key.startswith(start), start, dots=True)  # type: ignore[misc]
        charts.append(Chart(title, lines))
    return charts


def named_lines(run: RunRecord, kind: str, wanted, cut: str, dots: bool = False) -> tuple[Line, ...]:  # type: ignore[no-untyped-def]
    found = [key for key in keys(run, kind) if wanted(key)]
    series = [validation(run, key) if kind == "evaluate" else run.series(kind, key) for key in found]
    return tuple(
        Line(key.removeprefix(cut).replace("_", " "), points, f"run{number_of % STYLES}", dots)
        for number_of, (key, points) in enumerate(zip(found, series, strict=True))
    )


def keys(run: RunRecord, kind: str) -> list[str]:
    """Names of the figures that events of a kind have, in the order in which they come."""
    return list(
        dict.fromkeys(key for event in run.of(kind) + ([run.end] if kind == "evaluate" else []) for key in event)
    )


def validation(run: RunRecord, key: str) -> tuple[Point, ...]:
    """A validation's figure over the steps, the last one from the closing event."""
    step, value = number(run.end.get("steps")), number(run.end.get(key))
    last = ((step, value),) if step is not None and value is not None else ()
    return run.series("evaluate", key) + last


def where_time_went(run: RunRecord, spent: dict[str, float]) -> Html:
    whole = sum(spent.values())
    rows: list[tuple[Child, ...]] = [
        (phase, f"{seconds:,.1f}", f"{100 * seconds / whole:.1f} %") for phase, seconds in spent.items()
    ]
    rows.append(("all", f"{whole:,.1f}", f"of {run.seconds:,.1f} s of training"))
    return tag("details", tag("summary", "Where the time went"), table(("phase", "seconds", "share"), rows, (1, 2)))


def mixture(run: RunRecord) -> Html | None:
    """What the run reads of each source, as it was planned when it last started."""
    told = run.of("mixture")
    sources = told[-1].get("sources") if told else None
    sources = [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []
    if not sources:
        return None
    rows: list[tuple[Child, ...]] = []
    for source in sources:
        weight, tokens, share, epochs = (
            number(source.get(key)) or 0.0 for key in ("weight", "tokens", "share", "epochs")
        )
        spent = "yes" if source.get("spent") else ""
        rows.append((str(source.get("name", "")), f"{100 * weight:.1f} %", f"{tokens:,.0f}", f"{100 * share:.1f} %",
                     f"{epochs:.2f}", spent))  # fmt: skip
    head = ("source", "weight", "tokens", "share", "epochs", "read as often as it may be")
    return tag("div", tag("h3", "Mixture"), table(head, rows, (1, 2, 3, 4)))
