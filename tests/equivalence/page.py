"""docs/equivalence.md: the table of configurations that train alike, with the figures of a run of the whole grid."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pytest import MonkeyPatch

from tests.equivalence.rows import ROWS, Change, Row, unchanged
from tests.equivalence.runs import STEPS, TOLERANCE, Residuals, Steps, compared, run_config, trained, write_text
from tests.parallel.fleet import Fleet
from tests.parallel.test_equal import (
    FAULTS,
    LARGEST,
    MEAN,
    SEQUENCE,
    WEIGHTS,
    ZERO1,
    ZERO2,
    ZERO3,
    config,
    differences,
    told,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "equivalence.md"
COMMAND = "python -m tests.equivalence.page"
COLUMNS = {"causal": ("causal",), "masked": ("masked+next", "masked"), "spans": ("spans",)}
INTRODUCTION = f"""\
# Configurations that train alike

*Written by `{COMMAND}`; `make test-all` runs the same grid, `make test` a sample of it.*

Each row is trained for {STEPS} steps twice, plainly and with the change, through the whole of `fledge pretrain`:
a Llama by the next token, a BERT by masked tokens and next sentences (packed rows: masked tokens alone), a T5 by span
corruption. Alike means: every step's loss within {TOLERANCE:.0e} nats and gradient norm within {TOLERANCE:.0e} of its
size, **and** the mean difference of the losses no larger than three standard errors or two last places of a float32: a
small bias that hides within a tolerance is found by its sign. The control is the same change with a mistake in it; it
must not pass. A cell: largest difference of a loss, of a norm; the control's largest difference of a loss.

"""


def measured(row: Row, objective: str, data: dict[str, str], folder: Path) -> tuple[Residuals, Residuals]:
    """How the variant differs from the plain run, and how its control does."""

    def steps(name: str, change: Change) -> Steps:
        with MonkeyPatch.context() as patch:
            return trained(change(patch, run_config(objective, data, folder / name, **row.plain)))

    plain = steps("plain", unchanged)
    return compared(plain, steps("variant", row.variant)), compared(plain, steps("wrong", row.wrong))


def cell(row: Row, names: tuple[str, ...], data: dict[str, str], folder: Path) -> str:
    objective = next((name for name in names if name in row.objectives), None)
    if objective is None:
        return "-"
    found, wrong = measured(row, objective, data, folder / f"{row.name}-{objective}")
    verdict = "" if found.equal and not wrong.equal else "**differs** "
    return f"{verdict}{found.loss:.0e}, {found.norm:.0e}; {wrong.loss:.0e}"


PROCESSES = """
## Many processes

Four steps in one process and in several that talk through gloo, tests/parallel/test_equal.py: largest difference of a
loss, of a norm, of a weight at the end. Held to {0:.0e}, {0:.0e} and {1:.0e}; the mean of the losses' differences to
{2:.0e}. The controls are the planted faults of tests/parallel/sabotage.py: largest difference of a loss or norm.

"""
MESHES = [
    (2, {}),
    (4, {}),
    (2, ZERO1),
    (2, ZERO2),
    (2, ZERO3),
    (4, {"data": 2, **ZERO3}),
    (2, {"tensor": 2}),
    (2, SEQUENCE),
    (4, {"tensor": 2, **ZERO1}),
    (2, {"pipe": 2}),
    (2, {"pipe": 2, "schedule": "gpipe"}),
    (4, {"pipe": 2, "tensor": 2}),
]
LEARNERS = {"causal": "gpt2", "masked": "bert", "spans": "t5"}


def mesh_lines(folder: Path, data: dict[str, str]) -> list[str]:
    """The table of meshes and that of faults."""
    lines = [f"| processes | mesh | {' | '.join(LEARNERS)} |", "|" + "---|" * (2 + len(LEARNERS))]
    with Fleet(4, folder) as fleet:
        alone = {model: fleet.train(config(model, data)) for model in LEARNERS.values()}

        def measure(model: str, n: int, mesh: dict[str, Any], sabotage: str = "") -> dict[str, float]:
            return differences(alone[model], fleet.train(config(model, data), n, sabotage=sabotage, parallel=mesh))

        for n, mesh in MESHES:
            cells = []
            for model in LEARNERS.values():
                if model == "t5" and "pipe" in mesh:
                    cells.append("-")
                    continue
                found = measure(model, n, mesh)
                cells.append(f"{found['loss']:.0e}, {found['norm']:.0e}, {found['weights']:.0e}")
            lines.append(f"| {n} | {told(mesh)} | {' | '.join(cells)} |")
        lines += ["", "| fault | model | processes | mesh | difference |", "|---|---|---|---|---|"]
        for fault, model, n, mesh in FAULTS:
            if model in alone:
                found = measure(model, n, mesh, fault)
                lines.append(f"| {fault} | {model} | {n} | {told(mesh)} | {max(found['loss'], found['norm']):.0e} |")
    return lines


def main() -> None:
    lines = [f"| configuration | plain, changed | control | {' | '.join(COLUMNS)} |", "|" + "---|" * (3 + len(COLUMNS))]
    with tempfile.TemporaryDirectory() as name:
        data = write_text(Path(name))
        for row in ROWS:
            cells = [cell(row, names, data, Path(name)) for names in COLUMNS.values()]
            lines.append(f"| {row.name} | {row.says} | {row.breaks} | {' | '.join(cells)} |")
        meshes = mesh_lines(Path(name), data)
    many = PROCESSES.format(LARGEST, WEIGHTS, MEAN)
    PAGE.write_text(INTRODUCTION + "\n".join(lines) + "\n" + many + "\n".join(meshes) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
