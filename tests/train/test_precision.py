"""Steps in bfloat16 and float16: gradients near float32's, a loss scale that is torch's, overflow that costs a step and
never a weight, accumulation that changes nothing, and the same bits when a run goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledge.batch import PADDING, Batch, Loss, OneDocument, Term, one_document, padded, slice_rows
from fledge.errors import Interrupted, NonFiniteError
from fledge.log import read_log
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.nn.losses import fused_cross_entropy_sum
from fledge.train import checkpointing
from fledge.train.checkpointing import State
from fledge.train.precision import Precision
from tests.train.saved import read_optimizer
from tests.train.test_loop import Toy, go, settings, toy

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    """The peak of the machine is nobody's business here, and takes a second."""
    monkeypatch.setattr("fledge.train.loop.devices.matmul_peak", lambda *given, **named: 1e9)


# the relative rounding of a product is 2^-9 and 2^-12; gradients add up some ten of them
TOLERANCE = {"bfloat16": 0.03, "float16": 0.01}
MIXTURE = {"experts": 4, "experts_per_token": 2, "hidden": 64}
CASES = {
    "llama": ("llama", {}),
    "gpt2": ("gpt2", {}),
    "t5, a bias learned": ("t5", {}),
    "softcaps": ("gemma2", {"window": 16}),
    "norms of queries and keys": ("qwen3", {}),
    "a product before the output": ("bert", {"task": "lm"}),
    "bloom": ("bloom", {}),
    "mixture": ("mixtral", MIXTURE),
    "linear attention": ("llama", {"attention": "linear"}),
    "block by block": ("llama", {"attention": "strided", "stride": 16}),
}


def model_of(name: str, fields: dict) -> Transformer:
    shape = ShapeConfig(name, width=32, layers=2, heads=4, vocab_size=64, context_tokens=1024, **fields)
    return initialise(build(family(name).new_config(shape), "cpu"), 1).train()


def gradient(model: Transformer, precision: str, n_tokens: int, rows: int = 1, scale: float = 1.0) -> torch.Tensor:
    """All gradients in one row, unscaled."""
    state = State()
    computing = Precision(precision, CPU, state, scale)
    ids = torch.randint(0, 60, (rows, n_tokens), generator=torch.Generator().manual_seed(5))
    tokens = one_document(ids)
    source = (tokens, OneDocument()) if len(model.config.stacks) == 2 else None
    model.zero_grad()
    with computing.computing():
        total = model.loss_sum(tokens, OneDocument(), ids.roll(-1, 1), torch.ones(ids.shape), source)
    computing.scaled(total / ids.numel()).backward()
    parameters = list(model.parameters())
    computing.unscale(parameters)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in parameters)
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_near_those_of_float32_and_not_equal(case, precision):
    name, fields = CASES[case]
    n_tokens = 600 if case == "block by block" else 40
    exact = gradient(model_of(name, fields), "float32", n_tokens)
    found = gradient(model_of(name, fields), precision, n_tokens)
    assert 1e-6 < distance(found, exact) < TOLERANCE[precision]  # not 0: the control that it was computed so


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_output_product_of_several_chunks_is_near_float32s(precision):
    """Chunks add up in float32; 2,100 states of 40 would overflow float16 if they added up in it."""
    chance = torch.Generator().manual_seed(3)
    states, matrix = 40 + torch.randn(2100, 16, generator=chance), 0.1 * torch.randn(30, 16, generator=chance)
    targets, weight = torch.zeros(2100, dtype=torch.int64), torch.ones(2100)

    def gradients(name: str) -> list[torch.Tensor]:
        hidden, w = states.clone().requires_grad_(), matrix.clone().requires_grad_()
        with Precision(name, CPU, State()).computing():
            total = fused_cross_entropy_sum(hidden, w, targets, weight)
        total.backward()
        assert hidden.grad.dtype == w.grad.dtype == torch.float32
        return [total.detach(), hidden.grad, w.grad]

    for found, exact in zip(gradients(precision), gradients("float32"), strict=True):
        assert 0 < distance(found, exact) < 3 * TOLERANCE[precision]
    assert gradients("float32")[2].abs().max() > 65504  # the control


def test_a_scale_saves_gradients_too_small_for_float16():
    """A weight of the loss so small that every gradient inside the blocks is below what float16 holds."""
    tiny = 1e-9

    def found(precision: str, scale: float) -> torch.Tensor:
        model, state = model_of("llama", {}), State()
        computing = Precision(precision, CPU, state, scale)
        tokens = one_document(torch.arange(40)[None] % 60)
        with computing.computing():
            total = model.loss_sum(tokens, OneDocument(), tokens.ids.roll(-1, 1), torch.ones(1, 40))
        computing.scaled(total * tiny).backward()
        computing.unscale(list(model.parameters()))
        return model.decoder.layers[0].ffn.down.weight.grad  # type: ignore

    exact = found("float32", 1.0)
    assert distance(found("float16", 2.0**24), exact) < 0.02
    assert distance(found("float16", 1.0), exact) > 0.5  # the control: they are lost
    assert distance(found("bfloat16", 1.0), exact) < 0.05  # whose exponent is float32's


def test_the_scale_goes_the_way_of_torchs_gradscaler():
    ours = State()
    computing = Precision("float16", CPU, ours, first=1024.0, grow_after=3)
    theirs, tracker = torch.tensor(1024.0), torch.tensor(0, dtype=torch.int32)
    outcomes = [True] * 7 + [False, False] + [True] * 2 + [False] + [True] * 8
    ways = []
    for finite in outcomes:
        torch._amp_update_scale_(theirs, tracker, torch.tensor(0.0 if finite else 1.0), 2.0, 0.5, 3)  # its update()
        computing.held() if finite else computing.backs_off()
        ways.append((ours.loss_scale, theirs.item()))
    assert all(a == b for a, b in ways) and len({a for a, _ in ways}) == 4
    assert ours.overflows == outcomes.count(False)


def test_only_float16_scales_and_never_below_one_or_above_2_to_the_24():
    for name in ("float32", "bfloat16"):
        state = State()
        assert not Precision(name, CPU, state).backs_off() and state == State()
    state = State()
    computing = Precision("float16", CPU, state, first=2.0, grow_after=1)
    assert computing.backs_off() and state.loss_scale == 1.0 and not computing.backs_off()
    for _ in range(40):
        computing.held()
    assert state.loss_scale == 2.0**24


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_learns_what_float32_learns(tmp_path, precision):
    def last(name: str) -> float:
        go(tmp_path / name, toy(), settings(steps=60, learning_rate=0.01, precision=name))
        losses = [e["loss"] for e in read_log(tmp_path / name / "log.jsonl") if e["kind"] == "step"]
        return sum(losses[-10:]) / 10

    exact = last("float32")
    assert exact < 2.5  # of ln 20 = 3.0: it learnt
    assert last(precision) == pytest.approx(exact, rel=0.02)


class Overflowing(Toy):
    """Batch 2 multiplies hidden states until float16 has no number for them; float32 has."""

    def loss(self, batch: Batch) -> Loss:
        found = super().loss(batch)
        if self.drawn != 2:
            return found
        down = self.model.decoder.layers[0].ffn.down.weight  # type: ignore[union-attr]
        huge = torch.nn.functional.linear(torch.full((1, down.shape[1]), 6e4), down.abs() + 1.0).sum()
        return Loss({"nats": Term(found.terms["nats"].total + huge * 1e-9, found.terms["nats"].weight)})


def overflowing() -> Overflowing:
    return Overflowing(initialise(build(toy().model.config, "cpu"), 1))


def finite(model: Transformer) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_huge_activations_halve_the_scale_and_training_goes_on(tmp_path):
    recipe = overflowing()
    go(tmp_path, recipe, settings(precision="float16", ema_decay=0.9, optimizer="muon"))
    events = read_log(tmp_path / "log.jsonl")
    (overflow,) = [e for e in events if e["kind"] == "overflow"]
    assert (overflow["batch"], overflow["step"], overflow["loss_scale"]) == (2, 2, 32768.0)
    steps = [e for e in events if e["kind"] == "step"]
    assert [e["overflows"] for e in steps] == [0, 0, 1, 1] and recipe.drawn == 4 and finite(recipe.model)
    assert [e["skipped"] for e in steps] == [0] * 4  # the policy of real NaNs was not asked
    plain = toy()  # the schedule did not advance: the rates are those of four steps
    go(tmp_path / "plain", plain, settings())
    rates = [e["learning_rate"] for e in read_log(tmp_path / "plain" / "log.jsonl") if e["kind"] == "step"]
    assert rates == [e["learning_rate"] for e in steps]


def test_the_same_activations_are_no_overflow_in_bfloat16(tmp_path):
    recipe = overflowing()
    go(tmp_path, recipe, settings(precision="bfloat16"))
    assert recipe.drawn == 3 and not any(e["kind"] == "overflow" for e in read_log(tmp_path / "log.jsonl"))


def test_what_overflows_always_stops_the_run_by_the_policy(tmp_path):
    recipe = toy()
    before = [p.detach().clone() for p in recipe.model.parameters()]
    recipe.during_loss = lambda index: recipe.model.embedding.weight.sum() * math.inf
    with pytest.raises(NonFiniteError, match=r"step 0, batch 3 .* set train.non_finite=skip"):
        go(tmp_path, recipe, settings(precision="float16", loss_scale=8.0))
    assert all(torch.equal(p, old) for p, old in zip(recipe.model.parameters(), before, strict=True))


def test_a_stopped_float16_run_goes_on_to_the_same_bits(tmp_path):
    keys = {"steps": 8, "precision": "float16", "loss_scale_steps": 3}
    whole, stopped, resumed = overflowing(), overflowing(), overflowing()
    go(tmp_path / "whole", whole, settings(**keys))
    with pytest.raises(Interrupted):
        go(tmp_path / "run", stopped, settings(**keys, stop_after_steps=4))
    go(tmp_path / "run", resumed, settings(**keys))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    ends = [checkpointing.newest_valid(tmp_path / n / "checkpoints")[1] for n in ("whole", "run")]  # type: ignore
    assert ends[0].loss_scale == ends[1].loss_scale and ends[0].since_overflow == ends[1].since_overflow
    assert ends[0].overflows == ends[1].overflows == 1 and ends[0].loss_scale != 65536.0


class TwoTerms(Toy):
    """Eight rows of lengths 1 to 8, and a second term with a weight of its own."""

    def batch(self, index: int) -> Batch:
        self.drawn = index
        tokens, layout = padded([[(index + i) % 20 for i in range(n)] for n in range(1, 9)])
        return Batch(tokens, tokens.ids.roll(-1, 1), (tokens.doc != PADDING).float(), layout)

    def weights(self, batch: Batch) -> dict[str, float]:
        return {"nats": float(batch.weight.sum()), "rows": float(len(batch.targets))}

    def loss(self, batch: Batch) -> Loss:
        nats = super().loss(batch).terms["nats"]
        first = self.model.hidden(batch.tokens, batch.layout)[:, 0].float().square().sum()
        return Loss({"nats": nats, "rows": Term(first, float(len(batch.targets)), coefficient=0.01)})


def accumulated(precision: str, micro_rows: int, scale: float = 65536.0) -> torch.Tensor:
    """The step's gradients, as the loop makes them."""
    recipe = TwoTerms(toy().model)
    computing = Precision(precision, CPU, State(), scale)
    batch = recipe.batch(0)
    weights = recipe.weights(batch)
    for start in range(0, 8, micro_rows):
        with computing.computing():
            loss = recipe.loss(slice_rows(batch, start, start + micro_rows))
        computing.scaled(sum(t.coefficient / weights[n] * t.total for n, t in loss.terms.items())).backward()  # type: ignore
    parameters = list(recipe.model.parameters())
    computing.unscale(parameters)
    return torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]


def test_float16_with_accumulation_neither_overflows_nor_differs():
    whole, exact = accumulated("float16", 8), accumulated("float32", 8)
    for micro_rows in (1, 2, 4):
        found = accumulated("float16", micro_rows)
        assert bool(torch.isfinite(found).all())
        assert distance(found, whole) < 2e-3 and distance(found, exact) < 2e-3
    assert distance(accumulated("float32", 1), exact) < 1e-6
    assert not bool(torch.isfinite(accumulated("float16", 1, scale=2.0**24)).all())  # the control: there is a limit


def test_float16_with_accumulation_trains_the_same(tmp_path):
    def losses(micro_rows: int) -> list[float]:
        keys = settings(rows=8, micro_rows=micro_rows, precision="float16", steps=6)
        go(tmp_path / str(micro_rows), TwoTerms(toy().model), keys)
        events = read_log(tmp_path / str(micro_rows) / "log.jsonl")
        assert not any(e["kind"] == "overflow" for e in events)
        return [e["loss"] for e in events if e["kind"] == "step"]

    assert losses(1) == pytest.approx(losses(0), rel=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_blocks_that_are_computed_again_give_the_same_bits(precision):
    shape = {"dropout": 0.1}

    def found(again: bool) -> torch.Tensor:
        torch.manual_seed(7)
        return gradient(model_of("llama", shape).checkpoint_blocks(again), precision, 40)

    assert torch.equal(found(True), found(False))


def test_a_checkpoint_holds_float32_weights_and_moments(tmp_path):
    go(tmp_path, toy(), settings(precision="float16"))
    folder = tmp_path / "checkpoints" / "step-00000004"
    assert {t.dtype for t in read_optimizer(folder).values()} == {torch.float32}
    from fledge.model.folder import load_model

    assert {p.dtype for p in load_model(folder).parameters()} == {torch.float32}


def test_a_state_from_before_the_scale_begins_with_the_first_one(tmp_path: Path):
    state = replace(State(step=3), loss_scale=0.0)
    Precision("float16", CPU, state, 512.0)
    assert state.loss_scale == 512.0
    Precision("float16", CPU, state, 4.0)
    assert state.loss_scale == 512.0  # what the run has, not what the config begins with
