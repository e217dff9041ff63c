"""A driver of Ray Train that a test talks to, and what its workers are given to do.

`Driver` starts it (this file) on a cluster of its own; each line in asks for a run, the line out says how it ended.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.train.config import RunConfig

ANSWER = "answer: "
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
}


class Driver:
    """The driver's process; what Ray says goes to `log`."""

    def __init__(self, log: Path, path: str):
        environment = {**os.environ, **SETTINGS, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.parallel.ray_runs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=file, text=True, env=environment,
            )  # fmt: skip
        self.log = log

    def ask(self, tree: dict[str, Any], recipe: str = "plain", workers: int = 2) -> None:
        self.process.stdin.write(json.dumps([tree, recipe, workers]) + "\n")
        self.process.stdin.flush()

    def answer(self, seconds: float = 600) -> Any:
        """The result, or the error as [class, message, exit code]."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            assert waiting.select(seconds), f"no answer after {seconds} s: {self.log.read_text()[-3000:]}"
        line = self.process.stdout.readline()
        assert line.startswith(ANSWER), (line, self.log.read_text()[-3000:])
        return json.loads(line.removeprefix(ANSWER))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def plain(config: Any) -> Any:
    from fledge.recipes.pretrain import pretrain

    return pretrain(config)


def in_turn(config: Any) -> Any:
    """Several runs one after the other in the process group that Ray made, which must stand as it stood after each: the
    run itself, it again (finished: its result is given back), one of another seed, one whose gradients stay where they
    were made. Their results by folder, in that of the first."""
    import torch.distributed as dist

    from tests.parallel.sabotage import planted

    before = list(dist.distributed_c10d._world.pg_map)
    assert before
    results = {}
    for name, seed, fault in (("plain", 1, ""), ("plain", 1, ""), ("seed", 5, ""), ("fault", 1, "no sum")):
        other = replace(config, run=RunConfig(f"{config.run.dir}/{name}"), train=replace(config.train, seed=seed))
        with planted(fault):
            results[name] = plain(other)
        assert list(dist.distributed_c10d._world.pg_map) == before
    return results


def nan_on_rank_1(config: Any) -> Any:
    os.environ["FLEDGE_FAULTS"] = "nan_loss@3" if os.environ["RANK"] == "1" else ""
    return plain(config)


def killed_on_rank_1(config: Any) -> Any:
    os.environ["FLEDGE_FAULTS"] = "kill_after_checkpoint@2" if os.environ["RANK"] == "1" else ""
    return plain(config)


def drive() -> None:
    import ray

    from fledge.config import from_dict
    from fledge.recipes.config import PretrainConfig
    from fledge.train.ray import run

    sent = os.dup(1)
    os.dup2(2, 1)  # what Ray prints
    ray.init(num_cpus=2, include_dashboard=False)
    for line in sys.stdin:
        tree, recipe, workers = json.loads(line)
        # by its name in this module, which workers import
        import tests.parallel.ray_runs as runs

        try:
            answer: Any = run(getattr(runs, recipe), from_dict(PretrainConfig, tree), workers)
        except FledgeError as error:
            answer = [type(error).__name__, str(error), error.exit_code]
        os.write(sent, f"{ANSWER}{json.dumps(answer)}\n".encode())
    ray.shutdown()


if __name__ == "__main__":
    drive()
