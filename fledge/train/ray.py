"""A recipe on the processes that Ray Train starts: `run(pretrain, config, workers=4)`.

Ray says to each who it is, as torchrun does, and makes their process group; what they run is the recipe, unchanged. Ray
is imported when `run` is called (extra `ray`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fledge.device import place_of_process
from fledge.errors import ConfigError, FledgeError, Interrupted, PeerError, RankError
from fledge.train.signals import StopRequest, ask

POLL_SECONDS = 1.0
"""How often a signal is looked for: by the driver, and by each worker at the desk."""


class Desk:
    """Where the driver and the workers of a run leave word for each other: an actor of Ray's."""

    def __init__(self) -> None:
        self.signal, self.result = "", None
        self.errors: dict[int, Exception] = {}

    def begin(self, rank: int) -> None:
        """A worker begins, maybe again: what it said before is no more."""
        self.errors.pop(rank, None)

    def ask(self, signal: str) -> None:
        self.signal = signal

    def asked(self) -> str:
        return self.signal

    def fail(self, rank: int, error: Exception) -> None:
        self.errors[rank] = error

    def end(self, result: Any) -> None:
        self.result = result

    def word(self) -> tuple[Any, Exception | None]:
        """The result of rank 0, and the first error."""
        return self.result, next(iter(self.errors.values()), None)


def run(recipe: Callable[[Any], Any], config: Any, workers: Any = 2, run_config: Any = None) -> Any:
    """What `recipe(config)` gives on rank 0, computed by `workers` processes that Ray Train starts.

    `workers`: their number, each with a GPU where the cluster has as many, or a `ray.train.ScalingConfig`.
    `run_config`: a `ray.train.RunConfig`, whose `failure_config` has Ray begin again after a failure. Paths are those
    of the driver's folder, which every machine must see, as it must see `run.dir`: checkpoints and model stay there.
    SIGTERM and SIGINT at the driver save as under torchrun.

    Raises the error that the first worker to fail ended with, RankError for one that ended without a word, ConfigError
    for a mesh that is not the number of workers.
    """
    import ray
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    n_workers = workers if isinstance(workers, int) else workers.num_workers
    parallel = shared_by(config, n_workers)
    own = not ray.is_initialized()
    if own:
        ray.init()
    try:
        scaling = scaled(ray, config, workers) if isinstance(workers, int) else workers
        desk = ray.remote(num_cpus=0)(Desk).remote()
        trainer = TorchTrainer(
            work,
            train_loop_config={"recipe": recipe, "config": config, "desk": desk, "folder": os.getcwd()},
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if scaling.use_gpu else "gloo", timeout_s=parallel.timeout_seconds
            ),
            scaling_config=scaling,
            run_config=run_config or RunConfig(),
        )
        failure = fitted(trainer, lambda name: ray.get(desk.ask.remote(name)))
        result, error = ray.get(desk.word.remote())
    finally:
        if own:
            ray.shutdown()
    if error is not None:
        raise error
    if failure is not None:
        said = " ".join(str(failure).split())[:300]
        raise RankError(
            f"Ray Train: expected {n_workers} workers to end the run, got {said}; {parallel.remedy}"
        ) from failure
    return result


def shared_by(config: Any, n_workers: int) -> Any:
    """How the workers share the run. Raises ConfigError where they can't."""
    parallel = getattr(getattr(config, "train", None), "parallel", None)
    if parallel is None:
        raise ConfigError("Ray Train: expected a recipe that trains (train.parallel), got another; start it alone")
    if n_workers < 1:
        raise ConfigError(f"workers: expected 1 or more, got {n_workers}")
    parallel.sizes(n_workers)
    return parallel


def scaled(ray: Any, config: Any, n_workers: int) -> Any:
    """That many workers, with a GPU each where the config wants one, or leaves it open and the cluster has them."""
    device = config.train.device
    gpus = device == "cuda" or device == "auto" and ray.cluster_resources().get("GPU", 0) >= n_workers
    return ray.train.ScalingConfig(num_workers=n_workers, use_gpu=gpus)


def fitted(trainer: Any, told: Callable[[str], Any]) -> Exception | None:
    """What Ray ends with, if it fails. `told(name)` is called once if a signal comes meanwhile."""
    ends: list[Exception | None] = []

    def fit() -> None:
        try:
            trainer.fit()
            ends.append(None)
        except Exception as error:
            ends.append(error)

    # in a thread of its own Ray leaves SIGINT to us: its handler ends the workers where they stand
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    with StopRequest(launched=True) as stop:
        thread.start()
        passed_on = False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if stop.asked and not passed_on:
                passed_on = True
                told(stop.name)
    return ends[0]


def work(given: dict[str, Any]) -> None:
    """In each of Ray's workers: the recipe, and word to the desk of how it ended."""
    import ray

    rank, desk = place_of_process().rank, given["desk"]
    ray.get(desk.begin.remote(rank))
    try:
        with in_folder(given["folder"]), listening(lambda: ray.get(desk.asked.remote())):
            result = given["recipe"](given["config"])
    except PeerError:
        return  # whoever failed first says why, and has Ray end all
    except Exception as error:
        ray.get(desk.fail.remote(rank, sayable(rank, error)))
        if isinstance(error, Interrupted):
            return  # state is saved and all stop together: nothing for Ray to begin again
        raise
    if rank == 0:
        ray.get(desk.end.remote(result))


def sayable(rank: int, error: Exception) -> Exception:
    """The error as the driver raises it: as it is where people can mend it, else with its rank."""
    if isinstance(error, FledgeError | OSError | ModuleNotFoundError):
        return error
    return RankError(f"rank {rank}: {type(error).__name__}: {error}; Ray's log of the worker shows where")


@contextmanager
def in_folder(folder: str) -> Iterator[None]:
    """At the driver's place: Ray starts workers elsewhere, where relative paths would mean something else."""
    before = os.getcwd()
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: expected the driver's folder on every machine, got {error.strerror}; start from shared storage"
        ) from None
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def listening(asked: Callable[[], str]) -> Iterator[None]:
    """Meanwhile a signal that came to the driver (`asked`: its name, or '') stops the runs of this process."""
    over = threading.Event()

    def listen() -> None:
        while not over.wait(POLL_SECONDS):
            if name := asked():
                ask(name)  # again and again: a run may begin after the signal

    thread = threading.Thread(target=listen, name="signals-of-the-driver", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
