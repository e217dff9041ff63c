"""Runs side by side: figures, differences, shared axes, what happened on the time line, where the time went."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fledge.train.compare import along, axis, comparable, differences, final_figures, labels, text_table
from fledge.train.cost import Rates, run_cost
from fledge.train.record import read_run
from fledge.train.report import ReportConfig, report
from fledge.train.stacks import stacked
from fledge.train.timeline import marks, spikes, time_in_bins, time_spent
from tests.train.logs import LOST, PHASES, RESUMED, SAVED, SPIKE, write_run
from tests.train.test_report import Page


@pytest.fixture
def two(tmp_path):
    return [write_run(tmp_path / "a"), write_run(tmp_path / "b", 240, 3e-3, 1.5, warmup_steps=10)]


def test_processor_time_that_was_not_logged_is_that_of_all_processes(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    facts = {"device": "cpu", "threads": 3, "world_size": 2}
    begun = tuple({**event, "facts": facts} if "facts" in event else event for event in run.events[:-1])
    cost = run_cost(replace(run, events=begun), Rates(5.0, 100.0))
    assert cost.cpu_seconds is None and cost.watt_hours == pytest.approx(run.seconds * 3 * 2 * 5 / 3600)
    logged = run_cost(replace(run, events=(*begun, run.events[-1])), Rates(5.0, 100.0))  # the control
    assert logged.watt_hours == pytest.approx(run.end["cpu_seconds"] * 5 / 3600)


def page_of(runs: list[Path], **more: object) -> tuple[str, dict]:
    result = report(ReportConfig(runs[0], tuple(runs[1:]), **more), json=True)  # type: ignore[arg-type]
    return Path(result["out"]).read_text(), result


def test_the_final_figures_are_those_of_the_logs(two):
    found = final_figures([read_run(run) for run in two])
    assert found["a"]["val_loss"] == 2.0 and found["b"]["val_loss"] == 1.5
    assert found["a"]["best_val_loss"] == 2.0 and found["b"]["steps"] == 240
    assert found["b"]["tokens"] == 240 * 64 and found["b"]["flops"] == 240 * 64 * 6e3
    assert found["a"]["tokens_per_second"] == 91.4 and found["a"]["mfu"] == 0.31
    assert (found["a"]["skipped"], found["a"]["resumes"], found["a"]["spikes"]) == (1, 1, 1)
    losses = [event["loss"] for event in read_run(two[0]).of("step")][-6:]
    assert found["a"]["training_loss"] == pytest.approx(sum(losses) / 6)


def test_only_differing_keys_are_shown_and_where_a_run_goes_is_none(two):
    found = differences([read_run(run) for run in two])
    assert found == {
        "train.learning_rate": {"a": 1e-3, "b": 3e-3},
        "train.steps": {"a": 120, "b": 240},
        "train.warmup_steps": {"a": "-", "b": 10},
    }
    assert differences([read_run(two[0]), read_run(two[0])]) == {}  # the control


def test_places_on_an_axis_are_those_of_the_step(two):
    run = read_run(two[0])
    places = {name: axis(run, name)(40) for name in ("step", "tokens", "seconds", "FLOPs")}
    assert places == {"step": 40, "tokens": 40 * 64, "seconds": pytest.approx(28.0), "FLOPs": 40 * 64 * 6e3}
    assert along(((0, 9.0), (40, 3.0)), axis(run, "tokens")) == ((0.0, 9.0), (2560.0, 3.0))


def test_the_page_compares_and_is_whole(two):
    text, result = page_of(two)
    page = Page(text)
    assert page.open == [] and "What differs in their configs" in page.text and "train.warmup_steps" in page.text
    for axis_name in ("steps", "tokens", "seconds", "FLOPs"):
        for kind in ("Training", "Validation"):
            label = f"{kind} loss by {axis_name}: a from "
            assert any(str(found.get("aria-label", "")).startswith(label) for _, found in page.tags), label
    (group,) = result["comparisons"]
    assert set(group) == {"figures", "differences"} and json.dumps(group)
    assert "Comparison" not in Page(page_of(two[:1])[0]).text  # the control


def test_many_runs_fit_on_a_page(tmp_path):
    runs = [write_run(tmp_path / f"r{n}", 30, level=2 + n) for n in range(10)]
    page = Page(page_of(runs)[0])
    assert page.open == [] and all(f"r{n} from " in str([a for _, a in page.tags]) for n in range(10))


def test_tuning_is_not_compared_with_the_pre_training_before_it(two):
    (two[1] / "run.yaml").write_text(json.dumps({"chat": {}, "train": {"steps": 240}}))
    assert comparable([read_run(run) for run in two]) == []


def test_names_tell_runs_of_one_folder_name_apart(tmp_path):
    runs = [read_run(write_run(tmp_path / place / "run", 5)) for place in ("x", "y")]
    assert labels(runs) == ["x/run", "y/run"] and labels([runs[0], runs[0]]) == ["run (1)", "run (2)"]


def test_the_table_for_a_terminal_has_a_column_for_each_run(two, capsys):
    lines = text_table([read_run(run) for run in two]).splitlines()
    assert lines[0].split() == ["a", "b"]
    assert ["val loss", "2.0000", "1.5000"] in [re.split(r"\s{2,}", line) for line in lines]
    assert ["train.learning_rate", "0.001", "0.003"] in [re.split(r"\s{2,}", line) for line in lines]
    report(ReportConfig(two[0], (two[1],)))
    assert lines[0] in capsys.readouterr().out


# ---- what happened


def test_what_happened_is_marked_at_its_step(two):
    found = {(mark.kind, mark.x) for mark in marks(read_run(two[0]))}
    assert found == {("checkpoint", float(SAVED[0])), ("checkpoint", float(SAVED[1])), ("resume", RESUMED - 1.0),
                     ("skipped", LOST - 1.0), ("spike", float(SPIKE))}  # fmt: skip
    page = Page(page_of(two[:1])[0])
    drawn = [a["class"] for name, a in page.tags if name == "line" and str(a.get("class")).startswith("mark")]
    assert sorted(drawn) == ["mark checkpoint"] * 2 + ["mark resume", "mark skipped", "mark spike"]


def test_a_spike_is_a_loss_far_above_those_before_and_noise_is_none():
    noise = [(float(n), 3.0 + 0.1 * ((n * 7919) % 13) / 13) for n in range(200)]
    assert spikes(noise) == []
    falling = [(float(n), 8.0 / (1 + n / 20)) for n in range(200)]
    assert spikes(falling) == []
    twice = [(n, y + (2.0 if n in (90, 91) else 1.0 if n == 150 else 0.0)) for n, y in noise]
    assert [round(n) for n, _ in spikes(twice)] == [91, 150] or [round(n) for n, _ in spikes(twice)] == [90, 150]
    assert spikes([(n, float("nan")) for n, _ in noise]) == []


def test_what_an_objective_logs_is_drawn(tmp_path):
    pairs = Page(page_of([write_run(tmp_path / "m", objective="masked+next")])[0])
    spoken = [str(found.get("aria-label", "")) for _, found in pairs.tags]
    assert any(s.startswith("Terms of the loss: masked from") and "next sentence from 0.5" in s for s in spoken)
    assert any(s.startswith("Validation accuracy: masked accuracy from 0.4") for s in spoken)
    mixed = Page(page_of([write_run(tmp_path / "x", objective="mixture")])[0])
    spoken = [str(found.get("aria-label", "")) for _, found in mixed.tags]
    assert any(s.startswith("Validation by source: books from") and "code from" in s for s in spoken)
    assert "Mixture" in mixed.text and "75.0 %" in mixed.text
    plain = Page(page_of([write_run(tmp_path / "c")])[0])
    assert "Terms of the loss" not in plain.text and "Mixture" not in plain.text  # the control


# ---- where the time went


def test_the_time_is_told_by_phase_and_bars_hold_all_of_it(two):
    run = read_run(two[0])
    spent = time_spent(run)
    assert spent == pytest.approx({**{p: 120 * s for p, s in PHASES.items()}, "checkpoint": 1.8, "evaluation": 3.0})
    bins = time_in_bins(run, 12)
    whole = sum(seconds for _, values in bins for seconds in values.values()) * 10
    assert len(bins) == 12 and whole == pytest.approx(sum(spent.values()) - PHASES["other"])  # starting up left out
    text, _ = page_of(two[:1])
    assert "Where the time went" in text and "Time of a step" in text
    (two[0] / "log.jsonl").write_text(re.sub(r', "times": \{[^}]*\}', "", (two[0] / "log.jsonl").read_text()))
    assert "Where the time went" not in page_of(two[:1])[0]  # a log from before there were any


def test_bars_are_drawn_to_scale():
    drawn = str(stacked("x", "seconds", [(1, {"a": 1.0, "b": 3.0}), (2, {"a": 2.0})], ("a", "b")))
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([0-9.]+)"', drawn)]
    assert heights == pytest.approx([heights[0], 3 * heights[0], 2 * heights[0]], rel=1e-3)
    places = [float(y) for y in re.findall(r'<rect [^>]*y="([0-9.]+)"', drawn)]
    assert places[1] == pytest.approx(places[0] - heights[1], abs=0.02)  # the second part stands on the first
