"""The report as one HTML page: figures, curves, samples, scores, cost, lineage, config, machine. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fledge
from fledge.lineage import sha256_json
from fledge.log import clock
from fledge.train.compare import comparable, comparison
from fledge.train.cost import Rates, run_cost
from fledge.train.curves import curves, unit_of
from fledge.train.markup import Child, Html, join, table, tag
from fledge.train.plot import short
from fledge.train.record import RunRecord, finite, number
from fledge.train.scores import headline, scores

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = Path(__file__).with_name("report.css")
SHOWN_DIGITS = 12
MOST_SAMPLES = 12


def page(runs: list[RunRecord], evaluation: dict[str, Any] | None, rates: Rates) -> str:
    """The whole page about one or more runs, the first giving its name."""
    head = page_head(f"{runs[0].name} - fledge report")
    body = tag(
        "body",
        header(runs),
        tiles(runs, evaluation, rates),
        *(comparison(group) for group in comparable(runs)),
        *(folded(run, len(runs)) for run in runs),
        *(samples(run, len(runs) > 1) for run in runs),
        scores(evaluation) if evaluation else None,
        costs(runs, rates),
        lineage(runs),
        settings(runs),
        tag("footer", tag("p", f"Written by fledge {fledge.__version__}.", class_="quiet")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def folded(run: RunRecord, n_runs: int) -> Html:
    """A run's curves; of three runs or more, to be opened."""
    shown = curves(run, n_runs > 1)
    return shown if n_runs < 3 else tag("details", tag("summary", f"Curves: {run.name}"), shown)


def page_head(title: str, style: str = "") -> Html:
    """The head of a page that loads nothing, with the report's style and more of it."""
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Html(STYLE.read_text(encoding="utf-8") + style)),
    )


def header(runs: list[RunRecord]) -> Html:
    unfinished = [f"{run.name} (step {short(run.last('step', 'step') or 0)})" for run in runs if not run.end]
    return tag(
        "header",
        tag("h1", listed([run.name for run in runs])),
        tag("p", f"Not finished: {', '.join(unfinished)}.", class_="quiet") if unfinished else None,
        *(tag("p", early, class_="quiet") for early in map(early_stop, runs) if early),
        tag("p", " · ".join(str(run.folder) for run in runs), class_="quiet"),
    )


def early_stop(run: RunRecord) -> str:
    """How a run ended before its last step; "" for others."""
    if not run.of("early_stop") or not run.end:
        return ""
    event = run.of("early_stop")[-1]
    keys = ("step", "waited", "best_step", "published_step")
    step, waited, best, published = (f"{number(event.get(key)) or 0:.0f}" for key in keys)
    return (
        f"{run.name} stopped early at step {step}: {waited} validations without a better one since that of step "
        f"{best}. Published are the weights of step {published}."
    )


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def tiles(runs: list[RunRecord], evaluation: dict[str, Any] | None, rates: Rates) -> Html:
    """The handful of figures that people look up first."""
    first, spent = runs[0], [run_cost(run, rates) for run in runs]
    parameters, tokens = number(first.start.get("parameters")), sum(run.last("step", "tokens") or 0 for run in runs)
    shown: list[tuple[str, str, str]] = list(headline(evaluation)) if evaluation else []
    for run in runs:
        loss = number(run.end.get("val_loss"))
        loss = run.last("evaluate", "val_loss") if loss is None else loss
        if loss is not None:
            shown.append((f"Validation loss{f', {run.name}' if len(runs) > 1 else ''}", f"{loss:.4f}", unit_of(run)))
    if parameters:
        shown.append(("Parameters", short(parameters), f"{parameters:,.0f}"))
    if tokens:
        shown.append(("Tokens trained on", short(tokens), "" if len(runs) == 1 else "all runs"))
    speed = [value for run in runs[:1] for _, value in run.series("step", "tokens_per_second") if finite(value)]
    if speed:
        share = [value for _, value in first.series("step", "mfu") if finite(value)]
        peak = f"{100 * sorted(share)[len(share) // 2]:.0f} % of the matmul peak" if share else ""
        shown.append(
            ("Tokens per second", short(sorted(speed)[len(speed) // 2]), f"median; {peak}" if peak else "median")
        )
    shown.append(("Time", clock(sum(cost.seconds for cost in spent)), "training, wall"))
    shown.append(("Energy", f"{sum(c.watt_hours for c in spent):.2f} Wh", f"estimated at {spent[0].assumption}"))
    made = (
        tag("div", tag("dt", name), tag("dd", value, tag("small", note) if note else None), class_="tile")
        for name, value, note in shown
    )
    return tag("dl", *made, class_="tiles")


def samples(run: RunRecord, several: bool) -> Html | None:
    """What the model wrote on the way, evenly chosen where there are many."""
    drawn = run.of("sample")
    if not drawn:
        return None
    if len(drawn) > MOST_SAMPLES:
        chosen = {round(i * (len(drawn) - 1) / (MOST_SAMPLES - 1)) for i in range(MOST_SAMPLES)}
        drawn = [event for index, event in enumerate(drawn) if index in chosen]
    blocks: list[Child] = []
    for event in drawn:
        blocks.append(tag("h3", f"Step {event.get('step', '?')}"))
        prompt = tag("span", event.get("prompt", ""), class_="prompt")
        blocks.append(tag("pre", prompt, str(event.get("text", ""))))
    return tag("section", tag("h2", f"Samples on the way: {run.name}" if several else "Samples on the way"), *blocks)


def costs(runs: list[RunRecord], rates: Rates) -> Html:
    """Seconds and estimated watt-hours of every run and of all."""
    rows: list[tuple[Child, ...]] = []
    spent = [run_cost(run, rates) for run in runs]
    for run, cost in zip(runs, spent, strict=True):
        cpu = "not logged" if cost.cpu_seconds is None else f"{cost.cpu_seconds:,.1f}"
        rows.append((run.name, f"{cost.seconds:,.1f}", cpu, f"{cost.watt_hours:.3f}"))
    if len(runs) > 1:
        seconds, energy = sum(c.seconds for c in spent), sum(c.watt_hours for c in spent)
        known = [c.cpu_seconds for c in spent if c.cpu_seconds is not None]
        rows.append(("all", f"{seconds:,.1f}", f"{sum(known):,.1f}" if known else "", f"{energy:.3f}"))
    assumption = (
        "Energy is an estimate, not a measurement: CPU seconds (wall seconds times threads where they were not logged) "
        f"at {spent[0].assumption}. Set watts_per_core to your machine's."
    )
    head = ("run", "wall seconds", "CPU seconds", "watt-hours (estimated)")
    return tag("section", tag("h2", "Cost"), table(head, rows, (1, 2, 3)), tag("p", assumption, class_="quiet"))


def lineage(runs: list[RunRecord]) -> Html:
    """Digests of everything the result is made of: corpus, tokenizer, model, config, code."""
    rows: list[tuple[Child, ...]] = []
    for run in runs:
        for role, card in run.cards.items():
            parents = card.get("parents")
            rows.append((f"{run.name}: {role}", str(card.get("kind", "")), digest(card.get("digest"))))
            rows += [
                (f"{run.name}: {role}'s {name}", "parent", digest(value))
                for name, value in (parents if isinstance(parents, dict) else {}).items()
            ]
        if run.config:
            rows.append((f"{run.name}: config", "run.yaml", digest(sha256_json(run.config))))
        code = {str(card.get("fledge", "?")) for card in run.cards.values()}
        if code:
            rows.append((f"{run.name}: code", "fledge", ", ".join(sorted(code))))
    note = "SHA-256 of content: the same content has the same digest wherever and whenever it was made."
    return tag(
        "section",
        tag("h2", "Lineage"),
        table(("artefact", "kind", "digest"), rows) if rows else tag("p", "no cards found", class_="quiet"),
        tag("p", note, class_="quiet"),
    )


def digest(value: object) -> Html:
    text = str(value)
    return tag("code", text[:SHOWN_DIGITS] + ("…" if len(text) > SHOWN_DIGITS else ""), title=text)


def settings(runs: list[RunRecord]) -> Html:
    """Config and machine facts of every run."""
    parts: list[Child] = [tag("h2", "Config and machine")]
    for run in runs:
        facts = run.start.get("facts")
        known = [(key.replace("_", " "), str(value)) for key, value in facts.items()] if isinstance(facts, dict) else []
        for key, name, unit in (("matmul_peak_flops", "matmul peak", 1e9), ("flops_per_token", "work per token", 1e6)):
            value = number(run.start.get(key))
            if value:
                known.append((name, f"{value / unit:,.1f} {'GFLOP/s (measured)' if unit == 1e9 else 'MFLOP'}"))
        inside = join(
            table(("machine", ""), list(known)) if known else None,
            tag("pre", run.run_yaml) if run.run_yaml else tag("p", "run.yaml is not there", class_="quiet"),
        )
        parts.append(tag("details", tag("summary", f"{run.name}: run.yaml and machine"), inside))
    return tag("section", *parts)
