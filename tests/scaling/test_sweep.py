"""Tiny sweeps: points, what is not repeated, processes, signals; predictions that come before the run, and after it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fledge import config as configs
from fledge.config import from_dict, to_yaml
from fledge.errors import ConfigError, DataError, FledgeError, Interrupted
from fledge.lineage import sha256_json
from fledge.log import read_log
from fledge.model.folder import load_model
from fledge.recipes.config import PretrainConfig
from fledge.recipes.pretrain import pretrain
from fledge.scaling import sweep as sweeps
from fledge.scaling.config import CheckConfig, FitConfig, PredictConfig, SweepConfig
from fledge.scaling.fitted import fit_points
from fledge.scaling.points import Point, read_points, write_points
from fledge.scaling.predict import check, predict, read_register
from fledge.scaling.sweep import sweep
from fledge.train.signals import StopRequest
from tests.scaling.synthetic import points

TEXT = "one two three four five six seven eight nine ten eleven twelve. " * 120
TRAIN = {"rows": 2, "learning_rate": 3e-3, "device": "cpu", "threads": 1, "eval_every_steps": 0, "save_every_steps": 0}


def settings(folder: Path, **keys: object) -> SweepConfig:
    (folder / "text.txt").write_text(TEXT)
    model = {"family": "llama", "heads": 2, "context_tokens": 16}
    tree = {
        "base": {"model": model, "data": {"path": str(folder / "text.txt")}, "train": TRAIN},
        "sizes": [{"width": 8, "layers": 1}, {"width": 16, "layers": 2}],
        "out": str(folder / "out"),
        **({} if "flops" in keys else {"tokens": [64, 320]}),
        **keys,
    }
    return from_dict(SweepConfig, tree)


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    result = sweep(settings(folder), json=True)
    assert result["runs"] == 4
    return folder / "out"


def test_a_point_says_what_its_run_was(swept):
    found = {point.run: point for point in read_points(swept / "points.jsonl")}
    assert set(found) == {f"w{w}-l{n}-{s}steps-seed1" for w, n in ((8, 1), (16, 2)) for s in (2, 10)}
    point = found["w16-l2-10steps-seed1"]
    model = load_model(swept / point.run / "model")
    n_all = sum(p.numel() for p in model.parameters())
    outside = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("embedding", "output")))
    assert (point.parameters, point.parameters_non_embedding) == (n_all, n_all - outside)
    assert point.tokens == 320 and point.loss > 0 and point.curve[-1][0] == 320
    card = json.loads((swept / point.run / "model" / "card.json").read_text())
    assert point.digest == card["digest"] and point.data == card["facts"]["data_digest"]
    assert point.loss == card["facts"]["result"]["val_loss"]
    assert len({p.data for p in found.values()}) == 1


@pytest.mark.parametrize(
    ("family", "objective"), [("bert", {"objective": "masked"}), ("llama", {"infill": {"rate": 0.5}})]
)
def test_n_counts_the_tokens_that_the_objective_adds(tmp_path, family, objective):
    model = {"family": family, "width": 8, "layers": 1, "heads": 2, "context_tokens": 16}
    own = settings(tmp_path, sizes=[{"width": 8, "layers": 1}], tokens=[64])
    base = {"model": model, "data": {"path": str(tmp_path / "text.txt")}, "train": TRAIN, **objective}
    sweep(replace(own, base=from_dict(PretrainConfig, base)), json=True)
    (point,) = read_points(own.out / "points.jsonl")
    trained = load_model(own.out / point.run / "model")
    assert point.parameters == sum(p.numel() for p in trained.parameters())
    law = [
        Point(n, n / 2, d, 2 + 5 / n**0.2 + 20 / d**0.4, data=point.data) for n in (1e3, 1e4, 1e5) for d in (9, 99, 999)
    ]
    write_points(tmp_path / "points.jsonl", law)
    fit_points(FitConfig(tmp_path, bootstrap=20), json=True)
    run = {**base, "data": {"path": str(own.out / "data")}, "run": {"dir": str(tmp_path / "larger")}}
    (tmp_path / "larger.yaml").write_text(to_yaml(from_dict(PretrainConfig, run)))
    said = predict(PredictConfig(tmp_path / "fit.json", run=str(tmp_path / "larger.yaml")), json=True)
    assert said["parameters"] == point.parameters


def test_the_same_command_repeats_nothing_and_goes_on_with_what_is_missing(swept, monkeypatch):
    trained = []

    def counting(config: PretrainConfig) -> dict:
        before = (Path(config.run.dir) / "log.jsonl").read_text() if Path(config.run.dir).is_dir() else ""
        result = pretrain(config)
        if (Path(config.run.dir) / "log.jsonl").read_text() != before:
            trained.append(Path(config.run.dir).name)
        return result

    monkeypatch.setattr(sweeps, "pretrain", counting)
    before = read_points(swept / "points.jsonl")
    sweep(settings(swept.parent), json=True)
    assert trained == [] and read_points(swept / "points.jsonl") == before
    sweep(settings(swept.parent, tokens=[64, 320, 640], sizes=[{"width": 8, "layers": 1}]), json=True)
    assert trained == ["w8-l1-20steps-seed1"]


def test_a_stopped_sweep_goes_on_with_the_run_it_was_in(tmp_path, monkeypatch):
    def stops(config: PretrainConfig) -> dict:
        if config.train.steps == 10:
            config = replace(config, train=replace(config.train, stop_after_steps=4))
        return pretrain(config)

    one = settings(tmp_path, sizes=[{"width": 8, "layers": 1}])
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(sweeps, "pretrain", stops)
        sweep(one, json=True)
    assert len(read_points(tmp_path / "out" / "points.jsonl")) == 1
    sweep(one, json=True)
    log = read_log(tmp_path / "out" / "w8-l1-10steps-seed1" / "log.jsonl")
    assert [event["step"] for event in log if event["kind"] == "resume"] == [4]


def test_processes_give_the_points_of_one_process(tmp_path):
    two = settings(tmp_path, sizes=[{"width": 8, "layers": 1}], processes=2)
    sweep(two, json=True)
    several = read_points(tmp_path / "out" / "points.jsonl")
    sweep(replace(two, processes=1, out=tmp_path / "alone"), json=True)
    alone = read_points(tmp_path / "alone" / "points.jsonl")
    assert [(p.run, p.loss) for p in several] == [(p.run, p.loss) for p in alone] and len(several) == 2


def test_a_failure_in_a_process_names_the_run_and_what_it_said(tmp_path):
    bad = settings(tmp_path, sizes=[{"width": 8, "layers": 1, "learning_rate": 1e30}], tokens=[640], processes=2)
    with pytest.raises(FledgeError, match=r"w8-l1-20steps-seed1: expected a finished run, got exit code 1 \(error: "):
        sweep(bad, json=True)


def test_a_signal_ends_the_processes_saved(tmp_path, monkeypatch):
    asked = StopRequest()
    asked.asked, asked.name = True, "SIGTERM"
    monkeypatch.setattr(sweeps, "StopRequest", lambda: asked)
    with pytest.raises(Interrupted, match="SIGTERM: .*the same command continues"):
        sweep(settings(tmp_path, processes=2), json=True)


def test_budgets_of_flops_become_tokens_by_the_size(tmp_path):
    config = settings(tmp_path, flops=[3e6], sizes=[{"width": 8, "layers": 1}, {"width": 16, "layers": 1}])
    plan = sweeps.planned(config, sweeps.dataset_of(config))
    for run in plan:
        total, inner = sweeps.sizes(run.model)
        assert run.config.train.steps * 32 == pytest.approx(3e6 / 6 / total, abs=16) and run.budget == 3e6
    inner_plan = sweeps.planned(replace(config, count="non_embedding"), sweeps.dataset_of(config))
    assert all(b.config.train.steps > a.config.train.steps for a, b in zip(plan, inner_plan, strict=True))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokens": [64], "flops": [1e9]}, "one of the two"), ({"tokens": [-1.0]}, "tokens: expected numbers above 0"),
        ({"sizes": []}, "at least one size"), ({"sizes": [{"width": 0, "layers": 1}]}, "width: expected at least 1"),
        ({"tokens": [8]}, "at least one step of 32 tokens"), ({"tokens": [64, 65]}, "expected every run once"),
        ({"sizes": [{"width": 9, "layers": 1}]}, "width"), ({"warmup_share": 1.0}, "warmup_share"),
        ({"processes": 0}, "processes: expected"), ({"sizes": [{"width": 8, "layers": 1, "head": 2}]}, "unknown key"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_refused_before_it_trains(tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        sweep(settings(tmp_path, **keys), json=True)
    assert not list(tmp_path.glob("out/w*"))


def test_nothing_is_written_over_what_is_no_sweep(swept, tmp_path):
    with pytest.raises(ConfigError, match="expected a folder for a sweep alone, got one that holds"):
        sweep(replace(settings(tmp_path), out=swept / "data"), json=True)
    with pytest.raises(ConfigError, match="out: expected a file ending in .json, got log.txt"):
        FitConfig(swept, out=Path("log.txt"))
    with pytest.raises(ConfigError, match="out: expected a file ending in .jsonl, got fit.json"):
        PredictConfig(swept, parameters=1e9, tokens=1e9, out=Path("fit.json"))
    (tmp_path / "fit.json").mkdir()
    with pytest.raises(ConfigError, match="expected a file to write, got a folder"):
        fit_points(FitConfig(swept, out=tmp_path / "fit.json"), json=True)


def test_the_published_sweep_is_a_sweep():
    found = configs.load(SweepConfig, Path(__file__).parents[2] / "runs" / "scaling.yaml")
    assert len(found.sizes) >= 5 and len(found.flops) >= 3


# ---- predictions


@pytest.fixture
def fitted(tmp_path) -> Path:
    write_points(tmp_path / "points.jsonl", points(0))
    fit_points(FitConfig(tmp_path, bootstrap=30), json=True)
    return tmp_path / "fit.json"


def test_a_prediction_has_an_interval_around_the_truth_and_is_appended(fitted):
    from tests.scaling.synthetic import TRUTH

    size, tokens = 2e10, 4e11  # 48 times the C of the sweep's largest runs
    first = predict(PredictConfig(fitted, parameters=size, tokens=tokens), json=True)
    second = predict(PredictConfig(fitted, parameters=size / 2, tokens=tokens), json=True)
    assert first["low"] < TRUTH.loss(size, tokens) < first["high"] and first["high"] - first["low"] < 0.1
    assert second["loss"] > first["loss"]
    lines = read_register(fitted.with_name("predictions.jsonl"))
    assert [line["digest"] for line in lines] == [first["digest"], second["digest"]]
    assert lines[1]["previous"] == first["digest"] and abs(lines[0]["time"] - time.time()) < 60


def test_a_register_without_its_last_line_break_is_appended_to_on_a_line_of_its_own(fitted):
    path = fitted.with_name("predictions.jsonl")
    for number, size in enumerate((1e9, 2e9, 4e9), 1):
        predict(PredictConfig(fitted, parameters=size, tokens=1e10), json=True)
        path.write_text(path.read_text().rstrip("\n"))
        assert len(read_register(path)) == number


def test_without_register_nothing_is_written(fitted):
    predict(PredictConfig(fitted, parameters=1e9, tokens=1e10, register=False), json=True)
    assert not fitted.with_name("predictions.jsonl").exists()


def test_a_prediction_far_away_is_warned_of(fitted, capsys):
    assert predict(PredictConfig(fitted, parameters=1e12, tokens=1e13), json=True)["extrapolation"] > 100
    assert "times the largest C of the sweep" in capsys.readouterr().err


def changed(lines: list[dict]) -> list[dict]:
    return [lines[0] | {"loss": 2.0}, *lines[1:]]


def changed_with_a_new_digest(lines: list[dict]) -> list[dict]:
    line = lines[0] | {"loss": 2.0}
    return [line | {"digest": sha256_json({k: v for k, v in line.items() if k != "digest"})}, *lines[1:]]


@pytest.mark.parametrize(
    "forge",
    [changed, changed_with_a_new_digest, lambda ls: ls[1:], lambda ls: [ls[0], ls[2]], lambda ls: [*ls, ls[0]]],
    ids=["changed", "with a new digest", "first taken out", "one taken out", "put in"],
)
def test_a_register_that_was_forged_is_refused(fitted, forge):
    for size in (1e9, 2e9, 4e9):
        predict(PredictConfig(fitted, parameters=size, tokens=1e10), json=True)
    path = fitted.with_name("predictions.jsonl")
    lines = read_register(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in forge(lines)))
    with pytest.raises(DataError, match=r"line \d: expected the line that was registered, got another"):
        predict(PredictConfig(fitted, parameters=1e9, tokens=1e10), json=True)


@pytest.mark.parametrize("line", ["{", "[]", "{}", "null", '{"digest": 5}'])
def test_a_line_that_is_no_prediction_is_named(tmp_path, line):
    (tmp_path / "predictions.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="predictions.jsonl, line 1: expected"):
        read_register(tmp_path / "predictions.jsonl")


def test_a_fit_without_samples_or_law_predicts_nothing(fitted):
    fit_points(FitConfig(fitted.parent, bootstrap=0), json=True)
    with pytest.raises(DataError, match="expected bootstrap samples, got none"):
        predict(PredictConfig(fitted, parameters=1e9, tokens=1e10), json=True)
    with pytest.raises(ConfigError, match="one of the two"):
        PredictConfig(fitted)
    with pytest.raises(ConfigError, match="above 0"):
        PredictConfig(fitted, parameters=-1.0, tokens=1e9)


@pytest.fixture(scope="module")
def larger(swept) -> tuple[Path, PretrainConfig]:
    """A fit whose law has losses of tiny models on the sweep's data, and a run on that data."""
    data = read_points(swept / "points.jsonl")[0].data
    law = [
        Point(n, n / 2, d, 2.0 + 5 / n**0.2 + 20 / d**0.4, data=data, digest=f"{n}{d}")
        for n in (1e3, 3e3, 1e4, 3e4)
        for d in (1e2, 3e2, 1e3)
    ]
    folder = swept.parent / "law"
    folder.mkdir()
    write_points(folder / "points.jsonl", law)
    fit_points(FitConfig(folder, bootstrap=20), json=True)
    model = {"family": "llama", "width": 24, "layers": 2, "heads": 2, "context_tokens": 16}
    tree = {"model": model, "data": {"path": str(swept / "data")}, "train": TRAIN | {"steps": 6}}
    return folder / "fit.json", from_dict(PretrainConfig, tree)


def to_come(larger: tuple[Path, PretrainConfig], folder: Path) -> tuple[PretrainConfig, PredictConfig]:
    fit, config = larger
    config = replace(config, run=replace(config.run, dir=str(folder / "run")))
    (folder / "large.yaml").write_text(to_yaml(config))
    return config, PredictConfig(fit, run=str(folder / "large.yaml"), out=folder / "predictions.jsonl")


def test_a_run_is_held_to_what_was_said_before_it(larger, tmp_path):
    config, prediction = to_come(larger, tmp_path)
    said = predict(prediction, json=True)
    assert said["run"] == config.run.dir and said["tokens"] == 6 * 32
    asked = CheckConfig(tmp_path / "predictions.jsonl", tmp_path / "run")
    with pytest.raises(DataError):
        check(asked, json=True)  # nothing has run
    result = pretrain(config)
    found = check(asked, json=True)
    assert found["loss"] == result["val_loss"] and found["digest"] == said["digest"]
    assert found["inside"] == (said["low"] <= result["val_loss"] <= said["high"])
    with pytest.raises(ConfigError, match="expected a run that hasn't begun, got one that has"):
        predict(prediction, json=True)


def test_a_prediction_that_came_when_the_run_had_ended_or_begun_is_refused(larger, tmp_path):
    config, prediction = to_come(larger, tmp_path)
    pretrain(config)
    numbers = predict(replace(prediction, register=False), json=True)
    late = PredictConfig(prediction.fit, parameters=numbers["parameters"], tokens=numbers["tokens"], out=prediction.out)
    predict(late, json=True)
    asked = CheckConfig(tmp_path / "predictions.jsonl", tmp_path / "run")
    with pytest.raises(DataError, match="registered when it had ended; predict first"):
        check(asked, json=True)
    log = tmp_path / "run" / "log.jsonl"
    events = read_log(log)
    log.write_text(
        "".join(json.dumps(e | ({"time": time.time() + 60} if e["kind"] == "end" else {})) + "\n" for e in events)
    )
    with pytest.raises(DataError, match="registered when it had begun; predict first"):
        check(asked, json=True)
    log.write_text("".join(json.dumps(e | {"time": time.time() + 60}) + "\n" for e in events))
    assert check(asked, json=True)["loss"] > 0  # the control: by these times it came before


def test_a_run_of_another_size_or_other_data_has_no_prediction(larger, tmp_path):
    config, prediction = to_come(larger, tmp_path)
    numbers = predict(replace(prediction, register=False), json=True)
    at = {"out": prediction.out, "tokens": numbers["tokens"]}
    predict(PredictConfig(prediction.fit, parameters=2 * numbers["parameters"], **at), json=True)
    pretrain(config)
    asked = CheckConfig(tmp_path / "predictions.jsonl", tmp_path / "run")
    with pytest.raises(DataError, match=r"expected a prediction for \S+ parameters .* got 1 others"):
        check(asked, json=True)
    lines = read_register(tmp_path / "predictions.jsonl")
    line = {k: v for k, v in lines[0].items() if k != "digest"}
    line |= {"parameters": numbers["parameters"], "data": "f" * 64}
    prediction.out.write_text(json.dumps(line | {"digest": sha256_json(line)}) + "\n")
    with pytest.raises(DataError, match="expected the data ffffffffffff… that was predicted for"):
        check(asked, json=True)


def test_a_run_on_other_data_than_the_sweeps_is_not_predicted(fitted, larger, tmp_path):
    config, _ = to_come(larger, tmp_path)
    write_points(tmp_path / "points.jsonl", [replace(p, data="e" * 64) for p in points(0)])
    fit_points(FitConfig(tmp_path, bootstrap=30), json=True)
    with pytest.raises(DataError, match="expected the sweep's data eeeeeeeeeeee"):
        predict(PredictConfig(tmp_path / "fit.json", run=str(tmp_path / "large.yaml")), json=True)
    assert not Path(config.run.dir).exists()
