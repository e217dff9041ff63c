"""Who writes a run's checkpoints: here and now, or in a thread while training goes on.

A thread and no process: the long parts (copying, hashing, writing, fsync) let go of the interpreter, a signal to the
process group has nobody else to hit, and a kill takes writer and training together. Where several processes share a
run each has a Saver, they do the same together, and what fails in one fails in all.
"""

from __future__ import annotations

import copy
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fledge.errors import CheckpointError
from fledge.log import RunLog, say, warn
from fledge.train import checkpointing
from fledge.train.checkpointing import State
from fledge.train.clock import Clock
from fledge.train.config import TrainConfig
from fledge.train.contents import Contents
from fledge.train.faults import Faults
from fledge.train.ranks import Alone, Ranks, Team
from fledge.train.snapshot import fits

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Job:
    """One checkpoint to write. `best`: its validation loss, if it is to be marked as the best so far."""

    state: State
    contents: Contents
    best: float | None = None

    def frozen(self) -> Job:
        """The same over copies, which training doesn't move."""
        return replace(self, state=copy.deepcopy(self.state), contents=self.contents.frozen())


class Flight(threading.Thread):
    """The writing of one checkpoint beside the training, by all `ranks`: `error` is set once it has ended badly. Python
    waits for it at exit."""

    def __init__(self, step: int, ranks: Ranks, land: Callable[[], float]):
        super().__init__(name=f"checkpoint of step {step}")
        self.step, self.ranks, self.land = step, ranks, land
        self.held_seconds = self.seconds = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.seconds = self.land()
        except BaseException as error:  # raised again in the training's own thread
            self.error = error


class Saver:
    """Writes, marks and prunes the checkpoints under `root`; at most one is in flight."""

    def __init__(
        self,
        root: Path,
        config: TrainConfig,
        log: RunLog,
        faults: Faults,
        clock: Clock,
        saved_step: int = -1,
        ranks: Ranks | None = None,
    ):
        self.root, self.config, self.log, self.faults, self.clock = root, config, log, faults, clock
        self.saved_step = saved_step
        # the step of the last checkpoint that was begun
        self.ranks = ranks or Alone()
        self.flight: Flight | None = None
        self.flights = 0
        self.told: set[str] = set()

    def announce(self, n_bytes: int) -> None:
        """Say what memory a copy will take."""
        each = " in each process" if self.ranks.size > 1 else ""
        say(f"checkpoints are written behind the training, from a copy of {n_bytes / 1e6:,.1f} MB{each}")

    def save(self, job: Job) -> None:
        """Return when the checkpoint is on the disk, and the one before it. Raises CheckpointError, NonFiniteError."""
        lost = self.flight.step if self.flight is not None else -1
        try:
            self.wait()
        except CheckpointError as error:
            if self.config.failed_save == "stop":
                self.write(job)  # what was learned until now is kept all the same
            self.bear(error, job.state, lost)
        self.write(job)

    def save_on_the_way(self, job: Job) -> None:
        """A checkpoint with training to follow: its values are those of now, and it may land later. By
        `train.failed_save`, one that can't be written ends the training or is a warning."""
        if self.saved_step == job.state.step:
            return
        self.wait_aloud(job.state)
        try:
            if self.config.checkpoint_async and self.fits(job):
                self.begin(job)
            else:
                self.write(job)
        except CheckpointError as error:
            self.bear(error, job.state, job.state.step)

    def write(self, job: Job) -> None:
        if self.saved_step == job.state.step:
            return
        with self.clock("checkpoint"):
            seconds = self.land(job, self.ranks)
        self.saved_step = job.state.step
        self.log_landed(job.state.step, seconds, seconds)

    def begin(self, job: Job) -> None:
        """Copy, and write in a thread."""
        began = time.monotonic()
        with self.clock("checkpoint"):
            kept = job.frozen()
        self.flights += 1
        behind = self.ranks.behind(f"checkpoint/{self.flights}")
        self.flight = Flight(job.state.step, behind, lambda: self.land(kept, behind))
        self.flight.held_seconds = time.monotonic() - began
        self.saved_step = job.state.step
        self.flight.start()

    def land(self, job: Job, ranks: Ranks) -> float:
        """Write, mark if it is the best, prune; gives the seconds it took."""
        began, step, best = time.monotonic(), job.state.step, job.best
        job.contents.write(self.root, job.state, ranks, lambda: self.meddle(step))
        if self.faults.due("kill_after_checkpoint", step):
            os._exit(137)
        if best is not None:
            Team(ranks).first(lambda: checkpointing.mark_best(self.root, step, best))
        checkpointing.prune(self.root, self.config.keep_last, self.config.keep_every_steps, ranks)
        return time.monotonic() - began

    def meddle(self, step: int) -> None:
        """The faults that were planted in the writing of this step."""
        if self.faults.due("slow_disk", step):
            time.sleep(5)
        if self.faults.due("full_disk", step):
            raise checkpointing.unwritten(self.root, OSError(errno.ENOSPC, "planted"))

    def anywhere(self, here: bool) -> bool:
        """Whether it is so on any rank: all go on alike."""
        return any(self.ranks.exchange(here))

    def settle(self, state: State) -> None:
        """Between steps: log the one in flight if it has landed, or raise (or bear) what stopped it."""
        flight = self.flight
        if flight is not None and not self.anywhere(flight.is_alive()):
            try:
                self.wait()
            except CheckpointError as error:
                self.bear(error, state, flight.step)

    def wait(self) -> None:
        """Until none is in flight. Raises what stopped it."""
        flight = self.flight
        if flight is None:
            return
        self.join(flight)
        self.flight = None
        errors = self.ranks.exchange(None if flight.error is None else str(flight.error))
        if any(error is not None for error in errors):
            self.saved_step = -1
            raise flight.error or CheckpointError(next(error for error in errors if error is not None))
        self.log_landed(flight.step, flight.seconds, flight.held_seconds)

    def join(self, flight: Flight) -> None:
        """Until it has ended on all ranks; one that is gone meanwhile is noticed by asking."""
        with self.clock("checkpoint"):
            while self.anywhere(flight.is_alive()):
                flight.join(POLL_SECONDS)

    def wait_aloud(self, state: State) -> None:
        """Until none is in flight, told in the log: checkpoints are asked for faster than they can be written."""
        flight, began = self.flight, time.monotonic()
        if flight is not None and self.anywhere(flight.is_alive()):
            self.join(flight)
            seconds = round(time.monotonic() - began, 3)
            self.log.write("checkpoint_wait", step=state.step, waited_for=flight.step, seconds=seconds)
            self.tell_once(
                "wait", f"checkpoint of step {state.step} waited {seconds} s for that of step {flight.step} to be "
                "written; a larger train.save_every_steps loses less time"
            )  # fmt: skip
        self.settle(state)

    def wait_after_failure(self, one_is_gone: bool) -> None:
        """Before another error ends the training: what is in flight lands; if it can't, that is a warning."""
        flight, self.flight = self.flight, None
        if flight is None:
            return
        if one_is_gone:
            flight.ranks.hurry()
        flight.join()
        if flight.error is not None:
            warn(f"the checkpoint in flight was lost too: {flight.error}")
        else:
            self.log_landed(flight.step, flight.seconds, flight.held_seconds)

    def fits(self, job: Job) -> bool:
        """Whether there is memory for a copy, of every process on its machine."""
        here = socket.gethostname()
        needed = sum(n for host, n in self.ranks.exchange([here, job.contents.n_bytes]) if host == here)
        if not self.anywhere(not fits(needed)):
            return True
        self.tell_once(
            "memory", f"a copy of {needed / 1e6:,.0f} MB does not fit into memory, so training stands still while a "
            "checkpoint is written (train.checkpoint_async)"
        )  # fmt: skip
        return False

    def bear(self, error: CheckpointError, state: State, step: int) -> None:
        """By policy, raise the `error` of the checkpoint of `step`, or warn of it and let training go on."""
        if self.config.failed_save == "stop":
            raise error
        self.log.write("checkpoint_failed", step=step, error=str(error))
        warn(f"{error}; training goes on without it (train.failed_save=continue)")
        if state.best_step == step:
            state.best_step, state.best_val_loss = self.ranks.exchange(checkpointing.read_best(self.root))[0]

    def log_landed(self, step: int, seconds: float, held_seconds: float) -> None:
        path = checkpointing.folder_name(step)
        self.log.write("checkpoint", step=step, path=path, seconds=round(seconds, 3),
                       held_seconds=round(held_seconds, 3), times=self.clock.taken())  # fmt: skip

    def tell_once(self, what: str, text: str) -> None:
        if what not in self.told:
            self.told.add(what)
            say(text)
