"""Muon equals torch.optim.Muon and a float64 formula over singular values; groups, and the running mean of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fledge.errors import CheckpointError, ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.optim.adamw import AdamW, AdamWConfig
from fledge.optim.average import Average
from fledge.optim.config import GroupConfig, MuonConfig
from fledge.optim.groups import members
from fledge.optim.muon import A, B, C, Muon, orthogonalised, update_scale

SHAPES = {"wide": (6, 17), "tall": (17, 6), "square": (9, 9)}


class Layers(nn.Module):
    """Matrices inside blocks, and what is none: an embedding, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.layers = nn.ModuleList(nn.Linear(columns, rows) for rows, columns in SHAPES.values())
        self.norm = nn.LayerNorm(6)
        self.output = nn.Linear(6, 11)


def layers(seed: int = 0) -> Layers:
    torch.manual_seed(seed)
    return Layers()


def give_gradients(models: list[nn.Module], generator: torch.Generator) -> None:
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        gradient = torch.randn(parameters[0].shape, generator=generator)
        for parameter in parameters:
            parameter.grad = gradient.clone()


def by_singular_values(matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """The formula itself in float64: the quintic, applied to each singular value."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(iterations):
        s = A * s + B * s**3 + C * s**5
    return u @ torch.diag(s) @ vh


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("iterations", [1, 5])
def test_orthogonalisation_is_the_quintic_on_singular_values(shape, iterations):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrix, iterations)
    assert (found.double() - by_singular_values(matrix, iterations)).abs().max() < 1e-5
    assert (found.double() - by_singular_values(matrix, iterations + 1)).abs().max() > 1e-2  # the control
    exact = orthogonalised(matrix.double(), iterations, torch.float64)
    assert (exact - by_singular_values(matrix, iterations)).abs().max() < 1e-12


def test_five_steps_bring_singular_values_near_one():
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    before = torch.linalg.svdvals(matrix / matrix.norm())
    after = torch.linalg.svdvals(orthogonalised(matrix))
    assert before.max() < 0.5 and after.min() > 0.6 and after.max() < 1.25


def test_a_matrix_of_zeros_is_left_where_it_is():
    assert torch.equal(orthogonalised(torch.zeros(4, 3)), torch.zeros(4, 3))


@pytest.mark.parametrize(("scale", "theirs"), [("published", "original"), ("rms", "match_rms_adamw")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_thirty_steps_equal_torchs(scale, theirs, nesterov):
    ours, other = layers(), layers()
    config = MuonConfig(scale=scale, nesterov=nesterov, precision="bfloat16")
    muon = Muon(ours, config, AdamWConfig(0.1), ratio=2.0)
    matrices = [layer.weight for layer in other.layers]
    reference = torch.optim.Muon(matrices, lr=1.0, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=theirs)
    generator = torch.Generator().manual_seed(1)
    for step in range(30):
        rate = 1e-2 * (1 - step / 60)
        give_gradients([ours, other], generator)
        muon.step(rate)
        reference.param_groups[0]["lr"] = 2 * rate
        reference.step()
        for mine, his in zip(ours.layers, other.layers, strict=True):
            assert (mine.weight - his.weight).abs().max() < 1e-6, step


def test_another_momentum_or_scale_would_be_noticed():
    """The control of the equality above."""
    results = []
    for config in (MuonConfig(), MuonConfig(momentum=0.9), MuonConfig(scale="published"), MuonConfig(nesterov=False)):
        model = layers()
        muon, generator = Muon(model, config, AdamWConfig()), torch.Generator().manual_seed(1)
        for _ in range(2):
            give_gradients([model], generator)
            muon.step(1e-2)
        results.append(model.layers[0].weight.detach().clone())
    assert all((one - results[0]).abs().max() > 1e-5 for one in results[1:])


def test_what_is_no_hidden_matrix_moves_by_adamw():
    ours, other = layers(), layers()
    muon, adamw = Muon(ours, MuonConfig(), AdamWConfig(0.1), ratio=5.0), AdamW(other, AdamWConfig(0.1))
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        give_gradients([ours, other], generator)
        muon.step(1e-2)
        adamw.step(1e-2)
    theirs = dict(other.named_parameters())
    same = {name for name, p in ours.named_parameters() if torch.equal(p, theirs[name])}
    assert set(theirs) - same == {f"layers.{index}.weight" for index in range(3)}


def test_scales_are_the_published_ones():
    assert update_scale((64, 16), "published") == 2.0 and update_scale((16, 64), "published") == 1.0
    assert update_scale((64, 16), "rms") == update_scale((16, 64), "rms") == pytest.approx(1.6)


def test_muon_of_a_model_takes_the_maps_of_its_blocks_and_nothing_else():
    shape = ShapeConfig("t5", width=16, layers=2, heads=2, context_tokens=16, vocab_size=30)
    model = build(family("t5").new_config(shape), "cpu")
    taken = {m.name for m in members(model, "muon", 0.1) if m.method == "muon"}
    rest = {m.name for m in members(model, "muon", 0.1)} - taken
    assert all(".layers." in name for name in taken) and "encoder.layers.1.ffn.down.weight" in taken
    assert {"embedding.weight", "encoder.bias.weight", "decoder.bias.weight"} <= rest
    assert not any(name.endswith(("q.weight", "v.weight", "up.weight")) for name in rest)


def stepped(optimizer, model: nn.Module, generator: torch.Generator, n_steps: int) -> None:
    for _ in range(n_steps):
        give_gradients([model], generator)
        optimizer.step(1e-2)


def test_muons_state_comes_back_to_equal_bits():
    straight, stopped = layers(), layers()
    stepped(Muon(straight, MuonConfig(), AdamWConfig()), straight, torch.Generator().manual_seed(3), 6)
    generator = torch.Generator().manual_seed(3)
    first = Muon(stopped, MuonConfig(), AdamWConfig())
    stepped(first, stopped, generator, 3)
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    assert {"momentum/layers.0.weight", "exp_avg/output.weight"} <= set(saved)
    again = Muon(stopped, MuonConfig(), AdamWConfig())
    again.load(saved)
    stepped(again, stopped, generator, 3)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), stopped.parameters(), strict=True))


def test_the_state_of_another_optimizer_is_a_typed_error():
    model = layers()
    with pytest.raises(CheckpointError, match="expected momentum/layers.0.weight"):
        Muon(model, MuonConfig(), AdamWConfig()).load(AdamW(model, AdamWConfig()).state())
    with pytest.raises(CheckpointError, match="expected exp_avg/layers"):
        AdamW(model, AdamWConfig()).load(Muon(model, MuonConfig(), AdamWConfig()).state())
    with pytest.raises(CheckpointError, match=r"of \[6, 17\], got \[2\]"):
        state = Muon(model, MuonConfig(), AdamWConfig()).state()
        Muon(model, MuonConfig(), AdamWConfig()).load(state | {"momentum/layers.0.weight": torch.zeros(2)})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_groups_have_a_rate_and_a_decay_of_their_own(optimizer):
    groups = (GroupConfig("layers.1.*", rate=0.0), GroupConfig("norm.weight", rate=2.0, weight_decay=0.5))
    grouped, plain, doubled = layers(), layers(), layers()
    for model, chosen in ((grouped, groups), (plain, ()), (doubled, ())):
        adamw = AdamWConfig(0.1)
        moved = Muon(model, MuonConfig(), adamw, 1.0, chosen) if optimizer == "muon" else AdamW(model, adamw, chosen)
        give_gradients([model], torch.Generator().manual_seed(4))
        moved.step(2e-2 if model is doubled else 1e-2)
    start, other, twice = (dict(m.named_parameters()) for m in (layers(), plain, doubled))
    for name, parameter in grouped.named_parameters():
        if name.startswith("layers.1."):
            assert torch.equal(parameter, start[name]) and not torch.equal(parameter, other[name])
        elif name == "norm.weight":  # twice the rate, and a decay of 2e-2 · 0.5 on ones
            assert torch.allclose(parameter, twice[name] - 2e-2 * 0.5 * start[name], atol=1e-7)
        else:
            assert torch.equal(parameter, other[name]), name


def test_a_group_chooses_the_optimizer_and_the_first_that_matches_counts():
    groups = (GroupConfig("layers.0.*", optimizer="adamw"), GroupConfig("layers.*"))
    found = {m.name: m.method for m in members(layers(), "muon", 0.1, groups)}
    assert found["layers.0.weight"] == "adamw" and found["layers.1.weight"] == "muon"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((GroupConfig("layer.*"),), "got none that 'layer.*' is the first to match; names are embedding.weight"),
        ((GroupConfig("*"), GroupConfig("norm.*")), "got none that 'norm.*'"),
        ((GroupConfig("norm.*", optimizer="muon"),), r"expected matrices for muon, got norm.weight of shape \[6\]"),
    ],
)
def test_groups_that_do_not_fit_the_model_are_refused(groups, message):
    with pytest.raises(ConfigError, match=message):
        members(layers(), "adamw", 0.1, groups)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GroupConfig(""), lambda: GroupConfig("*", rate=-1.0), lambda: GroupConfig("*", weight_decay=-1.0),
        lambda: MuonConfig(momentum=1.0), lambda: MuonConfig(iterations=0), lambda: MuonConfig(learning_rate=-1.0),
    ],
)  # fmt: skip
def test_settings_that_would_not_train_are_refused(make):
    with pytest.raises(ConfigError, match=r"train.(groups|muon)\.\w+: expected"):
        make()


def test_the_running_mean_is_the_formula_and_trades_places_with_the_weights():
    model = layers()
    average = Average(model, 0.5)
    means = [p.detach().double().clone() for p in model.parameters()]
    for step in (1, 2, 3, 30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        means = [decay * m + (1 - decay) * p.detach().double() for m, p in zip(means, model.parameters(), strict=True)]
    before = [p.detach().clone() for p in model.parameters()]
    with average.in_place():
        for parameter, mean in zip(model.parameters(), means, strict=True):
            assert (parameter.double() - mean).abs().max() < 1e-6
            assert not torch.allclose(parameter.double(), before[0].double().mean())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def loss_after(optimizer: str, n_steps: int = 40) -> tuple[float, float]:
    """A tiny LLaMA on one fixed batch: the loss before and after."""
    shape = ShapeConfig("llama", width=32, layers=2, heads=2, context_tokens=16, vocab_size=20)
    model = initialise(build(family("llama").new_config(shape), "cpu"), 1)
    from fledge.batch import padded

    tokens, layout = padded([[(7 * i * i + 3 * i + j) % 20 for j in range(16)] for i in range(4)])
    targets, weight = tokens.ids.roll(-1, 1), torch.ones(tokens.ids.shape)
    moved = Muon(model, MuonConfig(), AdamWConfig()) if optimizer == "muon" else AdamW(model, AdamWConfig())
    losses = []
    for _ in range(n_steps):
        loss = model.loss_sum(tokens, layout, targets, weight) / weight.sum()
        loss.backward()
        moved.clip(1.0)
        moved.step(3e-3)
        moved.zero_grad()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


def test_muon_learns_at_adamws_rate():
    first, last = loss_after("muon")
    assert first == loss_after("adamw", 1)[0] and last < 0.5 * first
