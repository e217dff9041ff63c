"""Losses of trl on fixed numbers, as `trl_losses.json` keeps them: `python -m tests.align.theirs` wrote the file with
trl 1.16.0, which is no dependency of the tests."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

FILE = Path(__file__).parent / "trl_losses.json"
# Log-probabilities of each token of the chosen and the rejected answer, and the reference's sums.
PAIRS: list[dict[str, Any]] = [
    {"chosen": [-0.5, -1.25, -2.0], "rejected": [-1.5, -0.75], "reference": [-4.5, -2.0]},
    {"chosen": [-0.1], "rejected": [-0.2, -3.0, -0.3, -4.0], "reference": [-0.05, -6.0]},
    {"chosen": [-12.0, -9.0], "rejected": [-0.01, -0.02], "reference": [-3.0, -0.5]},
    {"chosen": [-2.0, -2.0, -2.0, -2.0], "rejected": [-2.0, -2.0, -2.0], "reference": [-8.0, -6.0]},
]
REWARDS = [(1.5, -0.5, 0.0), (0.25, 0.75, 0.5), (-3.0, 4.0, 1.0), (2.0, 2.0, 0.0)]  # chosen, rejected, margin
BETAS = (0.1, 0.5)
GAMMA, SMOOTHING, CENTRING = 0.5, 0.1, 0.01


class Same:
    """One process: what is gathered is what is there."""

    device = torch.device("cpu")

    def gather(self, value: Any) -> Any:
        return value

    gather_for_metrics = gather

    def unwrap_model(self, model: Any) -> Any:
        return model


def outputs_of(rows: list[list[float]]) -> tuple[dict[str, torch.Tensor], SimpleNamespace]:
    """Inputs of one prompt token before each answer, and what a model says of them."""
    width = max(map(len, rows))
    log_p, mask = torch.zeros(len(rows), width), torch.zeros(len(rows), width + 1, dtype=torch.int64)
    for row, values in enumerate(rows):
        log_p[row, : len(values)], mask[row, 1 : len(values) + 1] = torch.tensor(values), 1
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    found = SimpleNamespace(log_probs=log_p, entropy=log_p, mean_logits=log_p, is_top1=log_p < 0)
    return inputs, found


def trainer_like(kind: type, **more: Any) -> Any:
    """An object with a trainer's methods and the fields that they read, and nothing else of it."""
    one = object.__new__(kind)
    fields = {
        "accelerator": Same(), "aux_loss_enabled": False, "ld_alpha": None, "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl", "label_smoothing": 0.0, "loss_weights": [1.0], "use_weighting": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)}, "_total_train_tokens": 0,
        "calculate_KL": True, "desirable_weight": 1.25, "undesirable_weight": 0.75, "_tp_size": 1, "alpha": 0.0,
        **more,
    }  # fmt: skip
    for name, value in fields.items():
        object.__setattr__(one, name, value)
    return one


def of_pairs(name: str, beta: float) -> list[float]:
    from trl import DPOTrainer

    found = []
    for pair in PAIRS:
        inputs, outputs = outputs_of([pair["chosen"], pair["rejected"]])
        reference = torch.tensor(pair["reference"])
        inputs |= {"ref_chosen_logps": reference[:1], "ref_rejected_logps": reference[1:]}
        one = trainer_like(DPOTrainer, beta=beta, loss_types=[name], model=SimpleNamespace(training=False))
        found.append(float(one._compute_loss(lambda outputs=outputs, **_: outputs, inputs, False)))
    return found


def of_odds(beta: float) -> list[float]:
    from trl.experimental.orpo import ORPOTrainer

    means = [[torch.tensor([sum(pair[k]) / len(pair[k])]) for k in ("chosen", "rejected")] for pair in PAIRS]
    one = trainer_like(ORPOTrainer, beta=beta)
    return [-float(one.odds_ratio_loss(chosen, rejected)[0]) for chosen, rejected in means]


def of_simpo(beta: float) -> list[float]:
    from trl.experimental.cpo import CPOTrainer

    means = [[torch.tensor([sum(pair[k]) / len(pair[k])]) for k in ("chosen", "rejected")] for pair in PAIRS]
    one = trainer_like(CPOTrainer, beta=beta, loss_type="simpo", simpo_gamma=GAMMA)
    return [float(one.cpo_loss(chosen, rejected)[0]) for chosen, rejected in means]


def of_smoothed(beta: float) -> list[float]:
    """Its CPO trainer has the conservative form, of log-probabilities without a reference."""
    from trl.experimental.cpo import CPOTrainer

    one = trainer_like(CPOTrainer, beta=beta, loss_type="sigmoid", label_smoothing=SMOOTHING)
    sums = [[torch.tensor([sum(pair[k])]) for k in ("chosen", "rejected")] for pair in PAIRS]
    return [float(one.cpo_loss(chosen, rejected)[0]) for chosen, rejected in sums]


def of_judged(beta: float) -> float:
    """The batch's mean: chosen answers good, rejected ones bad, the divergence from the numbers of `DIVERGED`."""
    from trl import KTOTrainer

    inputs, outputs = outputs_of([pair[k] for pair in PAIRS for k in ("chosen", "rejected")])
    reference = torch.tensor([value for pair in PAIRS for value in pair["reference"]])
    inputs |= {"ref_logps": reference, "ref_KL_logps": torch.zeros(len(reference)),
               "label": torch.tensor([True, False] * len(PAIRS))}  # fmt: skip
    one = trainer_like(KTOTrainer, beta=beta, loss_type="kto", model=SimpleNamespace(training=False))
    object.__setattr__(one, "_compute_kl_logps", lambda model, batch: torch.tensor(DIVERGED))
    return float(one._compute_loss(lambda **_: outputs, inputs, False))


DIVERGED = [0.5, 1.5, -0.25, 2.0, 0.0, 1.0, 0.75, -1.0]


def of_rewards(centring: float | None) -> list[float]:
    from trl import RewardTrainer

    found = []
    for chosen, rejected, margin in REWARDS:
        outputs = SimpleNamespace(logits=torch.tensor([[chosen], [rejected]]))
        inputs = {"attention_mask": torch.ones(2, 3), "margin": torch.tensor([margin])}
        arguments = SimpleNamespace(center_rewards_coefficient=centring)
        one = trainer_like(RewardTrainer, args=arguments, model=SimpleNamespace(training=False))
        found.append(float(one.compute_loss(lambda outputs=outputs, **_: outputs, inputs)))
    return found


def main() -> None:
    import trl

    found: dict[str, Any] = {"trl": trl.__version__}
    for beta in BETAS:
        names = {"dpo": "sigmoid", "hinge": "hinge", "ipo": "ipo", "dpo of means": "sigmoid_norm"}
        found[str(beta)] = {
            **{ours: of_pairs(theirs, beta) for ours, theirs in names.items()},
            "orpo": of_odds(beta), "simpo": of_simpo(beta), "dpo smoothed": of_smoothed(beta), "kto": of_judged(beta),
        }  # fmt: skip
    found["bradley_terry"], found["centred"] = of_rewards(None), of_rewards(CENTRING)
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
