"""Methods of alignment on one task whose best is known, from the same pairs; and a reward that is hacked.

`python runs/compare/compare.py [OUT] [SEED …]` calls the verbs by the files of this folder (OUT in place of
out/compare; seeds 1, 2 and 3) and writes OUT/compare.json and OUT/compare.html. What is there already is used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from page import page
from table import Measured, cpu_seconds, hacking, measured_answers, measured_best, row
from task import best_expected, read_rows, write_pairs, write_task

from fledge.config import load, read_yaml
from fledge.lineage import write_text_durably
from fledge.recipes import rl
from fledge.recipes.align import align_dpo
from fledge.recipes.best_of import best_of
from fledge.recipes.config import PretrainConfig, SftConfig
from fledge.recipes.measure import measure
from fledge.recipes.preference_config import AlignConfig, AlignRewardConfig
from fledge.recipes.pretrain import pretrain
from fledge.recipes.reward import align_reward
from fledge.recipes.rl_config import BestOfConfig, GrpoRunConfig, MeasureConfig, PpoRunConfig
from fledge.recipes.sft import sft
from fledge.text.config import TokenizerTrainConfig
from fledge.text.train import train_tokenizer

HERE, WRITTEN = Path(__file__).resolve().parent, "out/compare"
VERBS: dict[str, tuple[type, Callable[..., Any]]] = {
    "1-tokenizer": (TokenizerTrainConfig, train_tokenizer),
    "2-pretrain": (PretrainConfig, pretrain),
    "3-sft": (SftConfig, sft),
    "answers": (BestOfConfig, best_of),
    "best": (BestOfConfig, best_of),
    "reward": (AlignRewardConfig, align_reward),
    "dpo": (AlignConfig, align_dpo),
    "ppo": (PpoRunConfig, rl.ppo),
    "grpo": (GrpoRunConfig, rl.grpo),
    "hacked": (PpoRunConfig, rl.ppo),
    "measure": (MeasureConfig, measure),
}
ARMS = {"no control of the distance": ("hacked", 0.0), "ppo.kl=0.2": ("held", 0.2)}


def call(name: str, out: Path, /, **changes: Any) -> dict[str, Any]:
    """One verb by its file, its folders under `out`."""
    kind, run = VERBS[name]
    text = (HERE / f"{name}.yaml").read_text(encoding="utf-8").replace(WRITTEN, str(out))
    path = out / "runs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    result: dict[str, Any] = run(load(kind, path, {key.replace("__", "."): value for key, value in changes.items()}))
    return result


def make_base(out: Path) -> None:
    if not (out / "task").exists():
        write_task(out / "task")
    for name in ("1-tokenizer", "2-pretrain", "3-sft"):
        call(name, out)


def measured(out: Path, name: str, seed: int, seconds: float, samples: int) -> Measured:
    """The answers of a model, by the name of its run folder, to the held-out prompts."""
    here = out / f"seed{seed}"
    answers = here / f"{name}-answers.jsonl"
    if not answers.exists():
        model = out / "base" if name == "base" else here / name
        call("measure", out, model=str(model), out=str(answers), seed=seed)
    return measured_answers(answers, seconds, samples)


def one_seed(out: Path, seed: int) -> dict[str, Measured]:
    """Every method, its pairs and reward model those of this seed."""
    here, seeded = out / f"seed{seed}", {"train__seed": seed}
    pairs = here / "pairs.jsonl"
    learned = [{"kind": "model", "path": str(here / "reward")}]
    if not pairs.exists():
        call("answers", out, model=str(out / "base"), out=str(here / "answers.jsonl"), seed=seed)
        write_pairs(here / "answers.jsonl", pairs, seed)
    call("reward", out, data__path=str(pairs), run__dir=str(here / "reward"), **seeded)
    call("dpo", out, data__path=str(pairs), run__dir=str(here / "dpo"), **seeded)
    call("ppo", out, rewards=learned, run__dir=str(here / "ppo"), **seeded)
    call("grpo", out, run__dir=str(here / "grpo"), **seeded)
    seconds = {name: cpu_seconds(here / name) for name in ("reward", "dpo", "ppo", "grpo")}
    labelled = len(read_rows(out / "task" / "prompts.jsonl")) * int(setting("answers")["samples"])
    return {
        "base model": measured(out, "base", seed, 0.0, 0),
        "best of n by the learned reward": best(out, seed, seconds["reward"], labelled),
        "DPO": measured(out, "dpo", seed, seconds["dpo"], labelled),
        "PPO, learned reward": measured(
            out, "ppo", seed, seconds["reward"] + seconds["ppo"], labelled + of_rollouts("ppo")
        ),
        "GRPO, verifiable reward": measured(out, "grpo", seed, seconds["grpo"], of_rollouts("grpo")),
    }


def best(out: Path, seed: int, reward_seconds: float, labelled: int) -> Measured:
    here = out / f"seed{seed}"
    kept, n = here / "best.jsonl", int(setting("best")["samples"])
    if not kept.exists():
        learned = [{"kind": "model", "path": str(here / "reward")}]
        call("best", out, model=str(out / "base"), rewards=learned, out=str(kept), seed=seed)
    return measured_best(kept, out / "task" / "val.jsonl", n, reward_seconds, labelled)


def setting(name: str) -> dict[str, Any]:
    return read_yaml(HERE / f"{name}.yaml")


def of_rollouts(name: str) -> int:
    """Answers in all rollouts of a run: each is learned from once."""
    train = setting(name)["train"]
    return int(train["steps"]) * int(train["rows"])


def main(out: Path, seeds: list[int]) -> dict[str, Any]:
    make_base(out)
    for folder, weight in ARMS.values():
        call("hacked", out, run__dir=str(out / folder), ppo__kl=weight)
    found = [one_seed(out, seed) for seed in seeds]
    optimum = best_expected(read_rows(out / "task" / "val.jsonl"))
    accuracies = [json.loads((out / f"seed{s}" / "reward" / "calibration.json").read_text())["accuracy"] for s in seeds]
    whole = {
        "optimum": optimum,
        "seeds": seeds,
        "methods": [row(name, [one[name] for one in found], optimum) for name in found[0]],
        "reward_accuracy": [one["value"] for one in accuracies],
        "base_cpu_seconds": cpu_seconds(out / "pretrain") + cpu_seconds(out / "base"),
        "hacking": [hacking(name, out / folder) for name, (folder, _) in ARMS.items()],
    }
    write_text_durably(out / "compare.json", json.dumps(whole, indent=1) + "\n")
    write_text_durably(out / "compare.html", page(whole))
    return whole


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else WRITTEN), [int(word) for word in sys.argv[2:]] or [1, 2, 3])
