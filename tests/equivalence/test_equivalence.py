"""Configurations that must train alike do, step by step, and each one's control does not."""

from __future__ import annotations

import pytest

from tests.equivalence.page import COMMAND, PAGE, measured
from tests.equivalence.rows import ROWS
from tests.equivalence.runs import Steps, compared, write_text

# torch's own, while it traces; not shown outside of tests
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
SAMPLE = {("accumulate 8", "masked+next"), ("packed", "spans"), ("resume", "causal")}
GRID = [
    pytest.param(row, objective, id=f"{row.name}-{objective}",
                 marks=[] if (row.name, objective) in SAMPLE else pytest.mark.slow)
    for row in ROWS for objective in row.objectives
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(("row", "objective"), GRID)
def test_it_trains_alike_and_its_control_does_not(row, objective, data, tmp_path):
    found, wrong = measured(row, objective, data, tmp_path)
    assert found.equal, found
    assert not wrong.equal and wrong.loss > 10 * found.loss, (found, wrong)


def test_a_bias_within_the_tolerance_is_found():
    """The controls of the comparison itself."""
    losses = [4.0 + 0.1 * n for n in range(8)]
    noise = [2e-6 * (-1) ** n for n in range(8)]
    assert compared(Steps(losses, losses), Steps([x + e for x, e in zip(losses, noise, strict=True)], losses)).equal
    biased = compared(
        Steps(losses, losses), Steps([x + 3e-6 + e / 100 for x, e in zip(losses, noise, strict=True)], losses)
    )
    assert biased.loss < 1e-5 and not biased.equal
    assert not compared(Steps(losses, losses), Steps([*losses[:-1], losses[-1] + 2e-5], losses)).equal
    assert not compared(Steps(losses, losses), Steps(losses, [*losses[:-1], losses[-1] * 1.001])).equal


def test_the_page_shows_every_row():
    shown = PAGE.read_text(encoding="utf-8")
    first = shown.split("## Many processes")[0]
    found = [line.split(" | ")[:3] for line in first.splitlines() if line.startswith("| ")][1:]
    assert found == [[f"| {row.name}", row.says, row.breaks] for row in ROWS], COMMAND
