"""docs/equivalence.md: the table of configurations that train alike, with the figures of a run of the whole grid."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pytest import MonkeyPatch

from tests.equivalence.rows import ROWS, Change, Row, unchanged
from tests.equivalence.runs import STEPS, TOLERANCE, Residuals, Steps, compared, run_config, trained, write_text

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


def main() -> None:
    lines = [f"| configuration | plain, changed | control | {' | '.join(COLUMNS)} |", "|" + "---|" * (3 + len(COLUMNS))]
    with tempfile.TemporaryDirectory() as name:
        data = write_text(Path(name))
        for row in ROWS:
            cells = [cell(row, names, data, Path(name)) for names in COLUMNS.values()]
            lines.append(f"| {row.name} | {row.says} | {row.breaks} | {' | '.join(cells)} |")
    PAGE.write_text(INTRODUCTION + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
