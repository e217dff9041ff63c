"""Published laws at published budgets; the optimum against a grid; the minimiser on problems whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from fledge.errors import ConfigError
from fledge.scaling.laws import PUBLISHED, Surface, published
from fledge.scaling.minimise import minimise

CHINCHILLA_FLOPS = 5.76e23  # Hoffmann et al. 2022: Gopher's budget, spent on 70B parameters and 1.4T tokens
SURFACES = {name: law for name, law in PUBLISHED.items() if isinstance(law, Surface)}


@pytest.mark.parametrize(
    ("name", "parameters", "tokens"),
    [("chinchilla", 32e9, 3.0e12), ("chinchilla_precise", 40e9, 2.4e12), ("besiroglu", 72e9, 1.33e12)],
)
def test_the_budget_of_chinchilla_by_each_set_of_constants(name, parameters, tokens):
    best = published(name).optimum(CHINCHILLA_FLOPS)
    assert best.parameters == pytest.approx(parameters, rel=0.02)
    assert best.tokens == pytest.approx(tokens, rel=0.02)


def test_twenty_tokens_a_parameter_is_about_what_chinchilla_was():
    best = published("twenty").optimum(CHINCHILLA_FLOPS)
    assert best.parameters == pytest.approx(70e9, rel=0.02) and best.tokens == pytest.approx(1.4e12, rel=0.02)


def test_kaplan_spends_on_parameters_what_the_others_spend_on_tokens():
    kaplan, refit = (published(name) for name in ("kaplan", "besiroglu"))
    assert kaplan.optimum(1e15 * 86400).parameters == pytest.approx(1.3e9)  # one PF-day: table 6
    assert kaplan.optimum(1e24).parameters / kaplan.optimum(1e23).parameters == pytest.approx(10**0.73)
    assert kaplan.optimum(1e24).parameters > 5 * refit.optimum(1e24).parameters


def test_exponents_are_the_published_ones():
    """Besiroglu et al. 2024: a = 0.5126; Hoffmann et al. 2022, approach 3: 0.46 (0.45 with rounded exponents)."""
    assert SURFACES["besiroglu"].exponent_of_parameters == pytest.approx(0.5126, abs=1e-4)
    assert SURFACES["chinchilla_precise"].exponent_of_parameters == pytest.approx(0.46, abs=0.005)


@pytest.mark.parametrize("flops", [1e15, 5.76e23, 1e30])
@pytest.mark.parametrize("name", SURFACES)
def test_the_optimum_solves_the_first_order_conditions_and_no_grid_point_is_better(name, flops):
    law = SURFACES[name]
    best = law.optimum(flops)
    assert 6 * best.parameters * best.tokens == pytest.approx(flops)
    by_size = law.alpha * law.A / best.parameters**law.alpha
    by_tokens = law.beta * law.B / best.tokens**law.beta
    assert by_size == pytest.approx(by_tokens)
    sizes = best.parameters * np.geomspace(0.1, 10, 4001)
    losses = [law.loss(size, flops / 6 / size) for size in sizes]
    assert min(losses) >= best.loss - 1e-12
    assert sizes[int(np.argmin(losses))] == pytest.approx(best.parameters, rel=0.002)


def test_an_unknown_set_of_constants_names_those_there_are():
    with pytest.raises(ConfigError, match="constants: expected one of chinchilla, .*kaplan.*, got 'gopher'"):
        published("gopher")


def rosenbrock(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = x[:, 0], x[:, 1]
    value = (1 - a) ** 2 + 100 * (b - a**2) ** 2
    return value, np.stack([-2 * (1 - a) - 400 * a * (b - a**2), 200 * (b - a**2)], 1)


def test_rosenbrocks_valley_is_followed_to_its_end_from_every_start():
    starts = np.array([[-1.2, 1.0], [2.0, 2.0], [0.0, 5.0], [-2.0, -2.0]])
    found, value = minimise(rosenbrock, starts)
    assert np.allclose(found, 1.0, atol=1e-4) and (value < 1e-8).all()
    short, _ = minimise(rosenbrock, starts, iterations=3)
    assert not np.allclose(short, 1.0, atol=1e-2)  # the control


def test_quadratics_of_any_scale_end_at_their_solution():
    random = np.random.default_rng(1)
    factors = random.normal(size=(5, 5))
    matrix = factors @ factors.T + np.diag([1e-3, 1.0, 1.0, 1.0, 1e3])
    wanted = random.normal(size=(3, 5))

    def value(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        off = x - wanted[rows]
        return 0.5 * np.einsum("si,ij,sj->s", off, matrix, off), off @ matrix

    found, _ = minimise(value, np.zeros((3, 5)))
    assert np.allclose(found, wanted, atol=1e-5)


def test_a_start_without_a_finite_value_stays_and_never_wins():
    def value(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):
            return np.log(x[:, 0]) ** 2, 2 * np.log(x) / x

    found, values = minimise(value, np.array([[-1.0], [5.0]]))
    assert values[0] == np.inf and found[0, 0] == -1.0
    assert found[1, 0] == pytest.approx(1.0, abs=1e-4)
