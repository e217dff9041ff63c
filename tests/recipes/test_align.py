"""`fledge align dpo`: a plain loop's losses, micro-batches that add up, a reference kept and checked, stops that lose
nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import transformers
from torch.nn.functional import logsigmoid

from fledge import lineage
from fledge.batch import OneDocument, one_document
from fledge.cli.main import main
from fledge.errors import CheckpointError, ConfigError, Interrupted
from fledge.model.folder import save_model
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors
from fledge.recipes import align as align_module
from fledge.recipes.align import align_dpo
from fledge.recipes.preference_config import PreferenceConfig
from fledge.recipes.preference_recipe import JudgedRecipe
from fledge.recipes.reference import FILE, NAME
from fledge.text.chat import renderer_for
from fledge.text.preferences import read_preferences, render_answer
from fledge.text.tokenizer import byte_level
from fledge.tune.attach import adapters, tune
from fledge.tune.config import TuneConfig
from fledge.tune.off import without_adapters
from tests.align.running import LORA, N_STEPS, config_for, made_place, steps_of
from tests.compress.tiny import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return made_place(tmp_path_factory.mktemp("align"))


@pytest.fixture(scope="module")
def trained(place):
    align_dpo(config_for(place, place / "run"))
    return place / "run"


def model_bytes(run):
    return b"".join(path.read_bytes() for path in sorted((run / "model").glob("*.safetensors")))


def test_the_first_step_knows_no_difference_and_the_last_one_does(trained, tmp_path):
    steps = steps_of(trained)
    first, last = steps[0], steps[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["reward_chosen"] == pytest.approx(0, abs=1e-5) and first["reward_rejected"] == pytest.approx(
        0, abs=1e-5
    )
    assert last["loss"] < 0.6 and last["reward_accuracy"] == 1.0 and last["reward_margin"] > 0.2
    assert last["reward_margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], abs=1e-5)
    assert last["log_p_chosen"] > first["log_p_chosen"] - 5
    result = lineage.verify(trained / "model")["facts"]["result"]
    page = tmp_path / "page.html"
    assert main(["report", str(trained), "--out", str(page)]) == 0
    assert all(title in page.read_text() for title in ("Rewards", "Log-probability of answers", "per pair"))
    assert result["val_pairs"] == 6 and result["val_reward_accuracy"] == 1.0 and result["val_loss"] < 0.6


def plain_loop(place, n_steps: int, beta: float = 0.1) -> list[float]:
    """DPO without fledge's model, batches, losses or loop: pair by pair, the reference a model of its own."""
    model, reference = (transformers.AutoModelForCausalLM.from_pretrained(place / "base") for _ in range(2))
    renderer = renderer_for(byte_level())
    pairs = list(read_preferences(place / "pairs.jsonl"))[:12]
    optimizer = torch.optim.AdamW(model.parameters(), 0.003, (0.9, 0.95), weight_decay=0.0)

    def log_p(of, pair, side):
        one = render_answer(renderer, pair.prompt, getattr(pair, side), pair.at)
        ids = torch.tensor([one.ids])
        found = of(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return found[torch.tensor(one.trained[1:])].sum()

    found = []
    for _ in range(n_steps):
        losses = []
        for pair in pairs:
            with torch.no_grad():
                away = log_p(reference, pair, "chosen") - log_p(reference, pair, "rejected")
            losses.append(-logsigmoid(beta * (log_p(model, pair, "chosen") - log_p(model, pair, "rejected") - away)))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_a_run_has_the_losses_of_a_plain_loop_over_transformers(place, tmp_path):
    train = {"rows": 12, "steps": 4, "schedule": "constant", "clip_norm": 0.0}
    config = config_for(place, tmp_path / "run", **train)
    align_dpo(replace(config, data=replace(config.data, val_fraction=0.5)))
    ours = [step["loss"] for step in steps_of(tmp_path / "run")]
    theirs = plain_loop(place, 4)
    assert ours == pytest.approx(theirs, abs=1e-5) and theirs[-1] < theirs[0] - 0.05
    assert ours[:2] != pytest.approx(plain_loop(place, 2, beta=0.11), abs=1e-4)  # the control


@pytest.mark.parametrize(
    "loss", ["dpo", "kto", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hinge", "ipo", "orpo", "simpo"))]
)
def test_micro_batches_add_up_to_the_batch(place, tmp_path, loss):
    runs = []
    for micro_rows in (0, 1):
        config = config_for(place, tmp_path / f"run{micro_rows}", loss, steps=3, micro_rows=micro_rows)
        align_dpo(config)
        runs.append(steps_of(tmp_path / f"run{micro_rows}"))
    for whole, parts in zip(*runs, strict=True):
        for key in whole:
            if key.startswith(("loss", "reward", "log_p", "divergence", "gradient")):
                assert parts[key] == pytest.approx(whole[key], rel=2e-5, abs=2e-5), key


@pytest.mark.slow
def test_a_divergence_of_each_micro_batch_by_itself_would_not_add_up(place, tmp_path, monkeypatch):
    """The control: what taking KTO's z before the batch is split is for."""
    given = JudgedRecipe.loss

    def by_itself(self, batch):
        self.divergence = self.divergence_of(batch, self.source).detach()
        return given(self, batch)

    losses = []
    monkeypatch.setattr(JudgedRecipe, "loss", by_itself)
    for micro_rows in (0, 1):
        align_dpo(config_for(place, tmp_path / f"run{micro_rows}", "kto", steps=N_STEPS, micro_rows=micro_rows))
        losses.append([step["loss"] for step in steps_of(tmp_path / f"run{micro_rows}")])
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize(
    ("loss", "method"),
    [
        ("dpo", None),
        pytest.param("dpo", LORA, marks=pytest.mark.slow),
        pytest.param("kto", None, marks=pytest.mark.slow),
    ],
    ids=["dpo", "lora", "kto"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(place, trained, tmp_path, loss, method):
    whole = trained
    if (loss, method) != ("dpo", None):
        whole = tmp_path / "whole"
        align_dpo(config_for(place, whole, loss, method))
    with pytest.raises(Interrupted):
        align_dpo(config_for(place, tmp_path / "stopped", loss, method, stop_after_steps=5))
    align_dpo(config_for(place, tmp_path / "stopped", loss, method))
    assert model_bytes(tmp_path / "stopped") == model_bytes(whole)
    assert [s["loss"] for s in steps_of(tmp_path / "stopped")] == [s["loss"] for s in steps_of(whole)]


@pytest.mark.slow
def test_another_seed_gives_other_bits(place, trained, tmp_path):
    """The control of the test above."""
    align_dpo(config_for(place, tmp_path / "other", seed=4))
    assert model_bytes(tmp_path / "other") != model_bytes(trained)


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, LORA], ids=["full", "lora"])
def test_a_reference_that_was_removed_is_made_again_to_the_same_bits(place, tmp_path, method):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        align_dpo(config_for(place, run, "dpo", method, stop_after_steps=5))
    before = (run / FILE).read_bytes()
    (run / FILE).unlink()
    align_dpo(config_for(place, run, "dpo", method))
    assert (run / FILE).read_bytes() == before


def test_the_reference_of_an_adapter_is_its_base_without_a_second_copy(place, tmp_path, monkeypatch):
    loads = []
    given = align_module.load_model
    monkeypatch.setattr(align_module, "load_model", lambda *a: loads.append(a) or given(*a))
    for name, method in (("full", None), ("lora", LORA)):
        align_dpo(config_for(place, tmp_path / name, "dpo", method, steps=1))
    assert loads == [(place / "base",)]  # full tuning's own; the adapter's is loaded by what tunes it
    assert (tmp_path / "full" / FILE).read_bytes() == (tmp_path / "lora" / FILE).read_bytes()


def test_adapters_stand_aside_and_come_back():
    model = tune(tiny("llama"), TuneConfig(method="lora", targets=("all-linear",)))
    with torch.no_grad():
        for _, adapter in adapters(model):
            adapter.up.normal_()
    ids = one_document(torch.arange(12)[None])
    with torch.no_grad():
        tuned = model(ids, OneDocument())
        with without_adapters(model):
            assert torch.equal(model(ids, OneDocument()), tiny("llama")(ids, OneDocument()))
        assert torch.equal(model(ids, OneDocument()), tuned)
        assert not torch.equal(tiny("llama")(ids, OneDocument()), tuned)  # the control


def stopped(place, run):
    with pytest.raises(Interrupted):
        align_dpo(config_for(place, run, stop_after_steps=3))
    with SafetensorsFile(run / FILE) as file:
        return file.read(NAME), {key: file.metadata[key] for key in ("digest", "content")}


def test_a_run_refuses_to_go_on_with_another_reference(place, tmp_path):
    table, metadata = stopped(place, tmp_path / "run")
    write_safetensors(tmp_path / "run" / FILE, {NAME: table + 0.5}, metadata)
    with pytest.raises(CheckpointError, match="expected what was written, got other numbers"):
        align_dpo(config_for(place, tmp_path / "run"))
    write_safetensors(tmp_path / "run" / FILE, {NAME: table}, {**metadata, "digest": "0" * 64})
    with pytest.raises(CheckpointError, match="it is of other data, another model or other settings"):
        align_dpo(config_for(place, tmp_path / "run"))
    (tmp_path / "run" / FILE).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError):
        align_dpo(config_for(place, tmp_path / "run"))
    write_safetensors(tmp_path / "run" / FILE, {NAME: table}, metadata)  # the control
    align_dpo(config_for(place, tmp_path / "run"))


@pytest.mark.slow
def test_other_data_is_refused_and_a_finished_run_is_not_repeated(tmp_path):
    place = made_place(tmp_path)
    first = align_dpo(config_for(place, tmp_path / "run", steps=2))
    assert align_dpo(config_for(place, tmp_path / "run", steps=2)) == first
    with open(place / "pairs.jsonl", "a") as file:
        file.write('{"prompt": "say 9", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(CheckpointError, match="the data has changed"):
        align_dpo(config_for(place, tmp_path / "run", steps=2))


def test_nothing_is_relative_where_there_is_no_reference(place, tmp_path):
    config = config_for(place, tmp_path / "run", steps=1)
    align_dpo(replace(config, preference=PreferenceConfig(reference="none")))
    assert not (tmp_path / "run" / FILE).exists()
    step = steps_of(tmp_path / "run")[0]
    assert step["reward_chosen"] == pytest.approx(0.1 * step["log_p_chosen"], rel=1e-5)


def test_a_margin_of_the_data_and_a_share_of_wrong_labels_reach_the_loss(tmp_path):
    place = made_place(tmp_path)
    rows = [json.loads(line) | {"margin": 0.7} for line in (place / "pairs.jsonl").read_text().splitlines()]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(place, tmp_path / "run", steps=1)
    align_dpo(replace(config, preference=PreferenceConfig(label_smoothing=0.2)))
    wanted = 0.8 * math.log1p(math.exp(0.7)) + 0.2 * math.log1p(math.exp(-0.7))  # the first step knows no difference
    assert steps_of(tmp_path / "run")[0]["loss"] == pytest.approx(wanted, abs=1e-5)


def test_a_model_that_does_not_go_on_from_a_prompt_is_refused(place, tmp_path):
    save_model(tiny("bert", context_tokens=96), tmp_path / "bert", byte_level())
    config = config_for(place, tmp_path / "run")
    with pytest.raises(ConfigError, match="expected a decoder, which goes on from a prompt, got bert"):
        align_dpo(replace(config, model=replace(config.model, path=str(tmp_path / "bert"))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"beta": 0.0}, "preference.beta"), ({"label_smoothing": 0.5}, "preference.label_smoothing"),
     ({"loss": "ipo", "label_smoothing": 0.1}, "read with loss=dpo only"), ({"gamma": -1.0}, "preference.gamma"),
     ({"loss": "simpo", "length_normalised": False}, "is of mean log-probabilities"),
     ({"loss": "kto", "reference": "none"}, "kto is relative"), ({"loss": "kto", "nats_weight": 1.0}, "of pairs only")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PreferenceConfig(**settings)


@pytest.mark.parametrize("axis", ["tensor", "pipe"])
def test_processes_that_share_rows_are_refused(axis, place, tmp_path, monkeypatch):
    from contextlib import contextmanager
    from types import SimpleNamespace

    @contextmanager
    def two(_):
        yield SimpleNamespace(alone=False)

    monkeypatch.setattr(align_module, "in_run_folder", two)
    with pytest.raises(ConfigError, match=f"train.parallel.{axis}: expected 1 to learn from answers"):
        align_dpo(config_for(place, tmp_path / "run", parallel={axis: 2}))
