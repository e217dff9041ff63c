"""`fledge scale sweep`: pre-trainings over sizes and tokens, each a run folder of its own.

The same command goes on where it was stopped: what is finished is not repeated, what was begun continues from its
checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledge.config import to_yaml
from fledge.data.build import from_text_path
from fledge.data.shards import Dataset, open_shards
from fledge.errors import ConfigError, FledgeError, Interrupted
from fledge.lineage import make_folder, read_card, refuse_other_artefact, write_text_durably
from fledge.log import read_log, say, warn
from fledge.model.config import ModelConfig
from fledge.model.count import count, flops_per_token
from fledge.recipes.config import PretrainConfig
from fledge.recipes.language import row_tokens_of
from fledge.recipes.objective import objective_tokenizer
from fledge.recipes.pretrain import first_config, pretrain
from fledge.scaling.config import SizeConfig, SweepConfig
from fledge.scaling.laws import FLOPS_PER_PARAMETER_TOKEN
from fledge.scaling.points import POINTS, Point, write_points
from fledge.train.record import number
from fledge.train.signals import StopRequest

DATA = "data"
OUTSIDE = ("embedding", "positions", "kinds", "output")  # components that N without embeddings leaves out
CURVE_POINTS = 64
SMOOTHED = 0.04  # share of a run's steps whose mean is one point of its curve
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Planned:
    """A run to come: its config, its model, and the budget that it is for (0: a number of tokens)."""

    config: PretrainConfig
    model: ModelConfig
    budget: float

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)


def sweep(config: SweepConfig, json: bool = False) -> dict[str, Any]:
    """Train what isn't trained yet; gives the points' file, their number and the lowest loss.

    Raises ConfigError for a size that can't be built or a budget of less than one step, before anything is trained;
    Interrupted when a signal asks to stop.
    """
    make_folder(config.out)
    refuse_other_artefact(config.out, "a sweep")
    dataset = dataset_of(config)
    plan = planned(config, dataset)
    done: dict[Path, Point] = {}

    def finished(run: Planned) -> None:
        done[run.folder] = point_of(run, pretrain(run.config))
        write_points(config.out / POINTS, [done[one.folder] for one in plan if one.folder in done])
        say(f"{run.folder.name}: loss {done[run.folder].loss:.4f} ({len(done)} of {len(plan)} runs)")

    if config.processes > 1:
        for run in in_processes([run for run in plan if not is_finished(run)], config.processes):
            finished(run)
    for run in plan:
        if run.folder not in done:
            finished(run)
    best = min(done.values(), key=lambda point: point.loss)
    result = {"points": str(config.out / POINTS), "runs": len(done), "best_loss": best.loss, "best_run": best.run}
    if not json:
        print(f"{result['points']}: {len(done)} runs, lowest loss {best.loss:.4f} ({best.run})")
    return result


def dataset_of(config: SweepConfig) -> Dataset:
    """The data that all runs share: raw text becomes shards once, in the sweep's folder."""
    data = config.base.data
    if not data.path:
        raise ConfigError("base.data.path: expected a dataset folder, a folder of text or a text file; set it")
    if (Path(data.path) / "train.bin").is_file():
        if data.tokenizer:
            raise ConfigError("base.data.tokenizer: a dataset folder brings its own tokenizer; leave it out")
        return open_shards(data.path)
    return from_text_path(data.path, data.tokenizer or "bytes", data.val_fraction, config.out / DATA)


def planned(config: SweepConfig, dataset: Dataset) -> list[Planned]:
    """Every run, the cheapest first. Raises ConfigError."""
    runs = [
        one_run(config, dataset, size, tokens, budget, seed)
        for size in config.sizes
        for tokens, budget in [*((t, 0.0) for t in config.tokens), *((0.0, f) for f in config.flops)]
        for seed in config.seeds
    ]
    names = [run.folder for run in runs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1).name
        raise ConfigError(f"sizes: expected every run once, got {twice} twice; budgets may differ by less than a step")
    most = max(run.config.train.steps * step_tokens(run.config, run.model) for run in runs)
    if most > dataset.train.n_tokens:
        warn(
            f"the longest run sees {most:,} tokens, the data has {dataset.train.n_tokens:,}: tokens that come again "
            "teach less, and the laws don't know that"
        )
    return sorted(runs, key=lambda run: run.config.train.steps * count(run.model).parameters)


def one_run(
    config: SweepConfig, dataset: Dataset, size: SizeConfig, tokens: float, budget: float, seed: int
) -> Planned:
    base = config.base
    shape = replace(base.model, width=size.width, layers=size.layers, heads=size.heads or base.model.heads)
    shaped = replace(base, model=shape)
    model = first_config(shaped, objective_tokenizer(shaped, dataset.tokenizer))
    if budget:
        tokens = budget / FLOPS_PER_PARAMETER_TOKEN / sizes(model)[config.count == "non_embedding"]
    per_step = step_tokens(base, model)
    steps = round(tokens / per_step)
    if steps < 1:
        raise ConfigError(
            f"sizes: expected at least one step of {per_step:,} tokens for width {size.width}, layers {size.layers}, "
            f"got {tokens:,.0f} tokens; take a larger budget, a smaller model or fewer rows"
        )
    name = f"w{size.width}-l{size.layers}-{steps}steps-seed{seed}"
    train = replace(base.train, steps=steps, seed=seed, learning_rate=size.learning_rate or base.train.learning_rate,
                    warmup_steps=round(config.warmup_share * steps) if config.warmup_share else base.train.warmup_steps,
                    )  # fmt: skip
    data = replace(base.data, path=str(dataset.folder), tokenizer="")
    run = replace(base.run, dir=str(config.out / name))
    return Planned(replace(shaped, train=train, data=data, run=run), model, budget)


def step_tokens(config: PretrainConfig, model: ModelConfig) -> int:
    """Tokens of one update."""
    return config.train.rows * row_tokens_of(config.train, model.context_tokens)


def sizes(model: ModelConfig) -> tuple[int, int]:
    """(all parameters, those without embeddings, position tables and the output matrix)."""
    counts = count(model)
    return counts.parameters, counts.parameters - sum(counts.by_component.get(name, 0) for name in OUTSIDE)


def point_of(run: Planned, result: dict[str, Any]) -> Point:
    """The point of a finished run."""
    total, inner = sizes(run.model)
    card = read_card(run.folder / "model")
    loss = number(result["val_loss"])
    if loss is None or not 0 < loss < float("inf"):
        raise ConfigError(f"{run.folder}: expected a loss above 0, got {result['val_loss']}; is there held-out text?")
    row_tokens = row_tokens_of(run.config.train, run.model.context_tokens)
    return Point(
        parameters=total,
        parameters_non_embedding=inner,
        tokens=float(result["tokens"]),
        loss=loss,
        flops=flops_per_token(run.model, row_tokens) * float(result["tokens"]),
        budget=run.budget,
        seed=run.config.train.seed,
        run=run.folder.name,
        digest=card["digest"],
        data=str(card["facts"].get("data_digest", "")),
        curve=curve(run.folder / "log.jsonl"),
    )


def curve(path: Path) -> tuple[tuple[float, float], ...]:
    """(tokens seen, training loss) of a run, each a mean over a few percent of its steps."""
    steps = [(number(e.get("tokens")), number(e.get("loss"))) for e in read_log(path) if e.get("kind") == "step"]
    known = [(tokens, loss) for tokens, loss in steps if tokens and loss and 0 < loss < float("inf")]
    width = max(1, round(SMOOTHED * len(known)))
    ends = sorted({round(width + i * (len(known) - width) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)})
    spans = [known[end - width : end] for end in ends if width <= end <= len(known)]
    return tuple((span[-1][0], sum(loss for _, loss in span) / len(span)) for span in spans)


def is_finished(run: Planned) -> bool:
    """Whether a run seems to be finished; `pretrain` then verifies it, and trains on if it isn't."""
    log = run.folder / "log.jsonl"
    return log.is_file() and (run.folder / "model").is_dir() and any(e.get("kind") == "end" for e in read_log(log))


def in_processes(runs: Sequence[Planned], most: int) -> Iterator[Planned]:
    """Train runs, `most` at a time, and give each as it ends. A failure or a signal stops all of them, saved."""
    waiting, working = list(runs), dict[subprocess.Popen[bytes], Planned]()
    with StopRequest() as stop:
        try:
            while waiting or working:
                if stop.asked:
                    raise Interrupted(f"{stop.name}: the runs at work were saved; the same command continues")
                while waiting and len(working) < most:
                    run = waiting.pop(0)
                    working[begin(run)] = run
                for process in [one for one in working if one.poll() is not None]:
                    run = working.pop(process)
                    if process.returncode:
                        raise failure(run, process.returncode)
                    yield run
                time.sleep(LOOK_SECONDS)
        finally:
            for process in working:
                process.terminate()
            for process in working:
                process.wait()


def begin(run: Planned) -> subprocess.Popen[bytes]:
    make_folder(run.folder)
    path = run.folder / "sweep.yaml"
    write_text_durably(path, to_yaml(run.config))
    with open(run.folder / "sweep.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fledge", "pretrain", str(path)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def failure(run: Planned, code: int) -> FledgeError:
    try:
        last = (run.folder / "sweep.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
    except (OSError, IndexError):
        last = "nothing was said"
    if code == Interrupted.exit_code:
        return Interrupted(f"{run.folder}: {last}")
    return FledgeError(f"{run.folder}: expected a finished run, got exit code {code} ({last}); see sweep.log there")
