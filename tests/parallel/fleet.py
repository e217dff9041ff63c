"""Training runs in several processes that talk through gloo: what tests of equality share.

`Fleet.train(config, n)` runs one config in n processes and gives its losses and gradient norms by step. A config is
what a YAML file of `fledge pretrain` holds. Processes are forked from a server that has imported everything once, and
one fleet serves all the runs of a test module.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.log import read_log

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = [
    "fledge.recipes.pretrain", "fledge.recipes.finetune", "fledge.recipes.align", "torch.distributed.fsdp",
    "torch.distributed.device_mesh", "torch._dynamo", "tests.parallel.fleet", "tests.parallel.sabotage",
]  # fmt: skip
SERVER.set_forkserver_preload(PRELOADED)
Values = dict[str, float]


@dataclass
class Trained:
    """One run: what each step logged, the result of rank 0, and by rank the error that it ended with."""

    folder: Path
    steps: dict[int, Values]
    result: dict[str, Any] | None
    errors: list[tuple[str, str, int] | None]

    @property
    def losses(self) -> list[float]:
        return [values["loss"] for _, values in sorted(self.steps.items())]

    @property
    def norms(self) -> list[float]:
        return [values["gradient_norm"] for _, values in sorted(self.steps.items())]


class Fleet:
    """Processes that wait for runs."""

    def __init__(self, n_processes: int, folder: Path):
        self.folder, self.runs = folder, 0
        self.ends, self.processes = [], []
        for _ in range(n_processes):
            mine, theirs = SERVER.Pipe()
            process = SERVER.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.ends.append(mine)
            self.processes.append(process)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def call(self, n_processes: int, function: str, *values: Any, seconds: float = 120) -> list[Any]:
        """`module:function(*values)` in n processes that a launcher would have started together; answers by rank."""
        port = free_port()
        for rank, end in enumerate(self.ends[:n_processes]):
            end.send((rank, n_processes, port, function, values))
        answers = []
        for end in self.ends[:n_processes]:
            assert end.poll(seconds), f"no answer after {seconds} s"
            answers.append(end.recv())
        return answers

    def train(self, config: Any, n_processes: int = 1, go_on: bool = False, sabotage: str = "", **more: Any) -> Trained:
        """`fledge pretrain` of a config (groups of plain values) in its own folder, or (`go_on`) in the last one's.
        `more`: further keys of train. `sabotage`: a fault of `tests.parallel.sabotage`."""
        return self.run("pretrain", config, n_processes, go_on, sabotage, **more)

    def run(
        self, verb: str, config: Any, n_processes: int = 1, go_on: bool = False, sabotage: str = "", **more: Any
    ) -> Trained:
        """As `train`, of any verb of VERBS."""
        self.runs += not go_on
        folder = self.folder / f"run-{self.runs}"
        tree = {**config, "train": {**config.get("train", {}), **more}, "run": {"dir": str(folder)}}
        answers = self.call(n_processes, "tests.parallel.fleet:trained", verb, tree, sabotage)
        log = read_log(folder / "log.jsonl") if (folder / "log.jsonl").exists() else []
        steps = {event["step"]: event for event in log if event["kind"] == "step"}
        return Trained(folder, steps, answers[0][0], [error for _, error in answers])

    def forget(self) -> None:
        shutil.rmtree(self.folder / f"run-{self.runs}", ignore_errors=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve(end: Any) -> None:
    """In a process of the fleet: do what comes."""
    from fledge import device

    device.matmul_peak = lambda *_, **__: 1e10  # type: ignore[assignment]  # measuring takes longer than these runs
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if os.environ.get("FLEET_LOUD"):
        import faulthandler

        faulthandler.dump_traceback_later(300, exit=True)
    else:
        os.dup2(nowhere, 2)
    while True:
        try:
            rank, n_processes, port, function, values = end.recv()
        except EOFError:
            return
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n_processes))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        end.send(named(function)(*values))


def named(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


Ended = tuple[Any, tuple[str, str, int] | None]


def ended(act: Callable[[], Any]) -> Ended:
    """(what `act()` gives, None), or None and the error: kind, message (traceback of one that nobody foresaw), code.
    No process group is left behind."""
    import torch.distributed as dist

    try:
        return act(), None
    except FledgeError as error:
        return None, (type(error).__name__, str(error), error.exit_code)
    except Exception as error:
        return None, (type(error).__name__, "".join(traceback.format_exception(error))[-3000:], 1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


VERBS = {
    "pretrain": ("fledge.recipes.config:PretrainConfig", "fledge.recipes.pretrain:pretrain"),
    "sft": ("fledge.recipes.config:SftConfig", "fledge.recipes.sft:sft"),
    "finetune": ("fledge.recipes.finetune_config:FinetuneConfig", "fledge.recipes.finetune:finetune"),
    "align": ("fledge.recipes.preference_config:AlignConfig", "fledge.recipes.align:align_dpo"),
    "reward": ("fledge.recipes.preference_config:AlignRewardConfig", "fledge.recipes.reward:align_reward"),
    "grpo": ("fledge.recipes.rl_config:GrpoRunConfig", "fledge.recipes.rl:grpo"),
    "ppo": ("fledge.recipes.rl_config:PpoRunConfig", "fledge.recipes.rl:ppo"),
}


def trained(verb: str, tree: dict[str, Any], sabotage: str = "") -> Ended:
    """The result of a verb that trains, or the error that it ended with."""
    from fledge.config import from_dict
    from tests.parallel.sabotage import planted

    config, act = map(named, VERBS[verb])
    with planted(sabotage):
        return ended(lambda: act(from_dict(config, tree)))  # type: ignore[arg-type]
