"""The generalised Jensen-Shannon divergence of trl on fixed logits, as `trl_gkd.json` keeps it: `python -m
tests.align.theirs_gkd` wrote the file with trl 1.16.0, which is no dependency of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch

FILE = Path(__file__).parent / "trl_gkd.json"
BETAS, TEMPERATURES = (0.0, 0.1, 0.5, 0.9, 1.0), (1.0, 1.7)


def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a student and a teacher [2, 5, 13], and labels with some places left out; a formula, so that they stay."""
    places = torch.arange(2 * 5 * 13, dtype=torch.float64).view(2, 5, 13)
    labels = torch.tensor([[3, -100, 1, 4, 1], [-100, -100, 5, 9, 2]])
    return 3 * torch.sin(places * 1.3), 4 * torch.cos(places * places * 0.7), labels


def main() -> None:
    import trl
    from trl.experimental.gkd import GKDTrainer

    student, teacher, labels = logits()
    found = {
        f"{beta} {t}": float(GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, t))
        for beta in BETAS
        for t in TEMPERATURES
    }
    FILE.write_text(json.dumps({"trl": trl.__version__, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
