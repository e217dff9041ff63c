"""The processes of one run: who this is, how they agree, and how the error of one ends all with that error.

A launcher such as torchrun says who is who in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).
One that has made the process group too, as Ray Train does, finds it again as it was.
Alone, nothing here imports or calls torch.distributed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from fledge.device import Place, place_of_process
from fledge.errors import EXIT_CTRL_C, EXIT_FAILED, ConfigError, FledgeError, Interrupted, PeerError, RankError
from fledge.parallel.config import ParallelConfig, SplitConfig

SETTLE_SECONDS = 5.0
"""How long a process that lost another waits for somebody to say why."""
FAILURE = "failure"
LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "tcpstore", "socket", "processgroup", "peer")


class Group:
    """This process among those of the run; `store` holds what they tell each other outside of tensors. `found`: the
    process groups that stood already, which are somebody else's to end; None where the run makes its own."""

    def __init__(
        self,
        place: Place,
        store: Any = None,
        config: ParallelConfig | SplitConfig | None = None,
        found: list[Any] | None = None,
    ):
        self.config = config or ParallelConfig()
        self.place, self.store, self.timeout_seconds = place, store, self.config.timeout_seconds
        self.rank, self.world_size, self.found = place.rank, place.world_size, found
        self.missing: list[int] = []

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    def least(self, number: int) -> int:
        """The smallest `number` of all processes."""
        return -self.most(-number)

    def most(self, number: int) -> int:
        """The largest `number` of all processes."""
        if self.alone:
            return number
        import torch.distributed as dist

        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def summed(self, values: list[float]) -> list[float]:
        """Element by element over all processes, in float64; every process gets the same bits."""
        if self.alone or not values:
            return values
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found)
        return [float(value) for value in found]

    def wait(self) -> None:
        """Until every process is here."""
        self.most(0)

    def once(self, act: Callable[[], object]) -> None:
        """`act()` by rank 0, for which the others wait."""
        if self.rank == 0:
            act()
        self.wait()

    def failed(self, error: BaseException) -> FledgeError | None:
        """What this process must end with instead of its own `error`: None if it is the first to fail, and so the one
        that says why."""
        if self.alone:
            return None
        instead = None if isinstance(error, PeerError) else self.reason(error)
        self.linger()
        return instead

    def reason(self, error: BaseException) -> FledgeError | None:
        """As `failed`, for a process that has not ended yet."""
        if isinstance(error, Interrupted) and self.rank:
            return PeerError(0, error.exit_code)  # all stop together, and rank 0 says so
        return self.named(error) if lost_another(error) else self.tell(error)

    def linger(self) -> None:
        """Rank 0 keeps the store where no launcher does: it stays until the others know how this ends. Its connections
        are cut first, so that nobody waits for its part of a sum."""
        try:
            self.store.set(f"ended/{self.rank}", "1")
            kept = self.found is not None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            if self.rank or kept:
                return
            left()
            until = time.monotonic() + 2 * SETTLE_SECONDS
            others = [r for r in range(1, self.world_size) if r not in self.missing]
            while time.monotonic() < until and not all(self.store.check([f"ended/{r}"]) for r in others):
                time.sleep(0.05)
        except RuntimeError:
            pass  # the store is gone, and with it whoever would ask

    def leave(self) -> None:
        """End what the run made: the whole group, or its parts of one that stood already."""
        import torch.distributed as dist

        if self.found is None:
            left()
            return
        for part in standing():
            if part not in self.found:
                dist.destroy_process_group(part)

    def tell(self, error: BaseException) -> FledgeError | None:
        code = EXIT_CTRL_C if isinstance(error, KeyboardInterrupt) else EXIT_FAILED
        code = error.exit_code if isinstance(error, FledgeError) else code
        mine = json.dumps({"rank": self.rank, "code": code})
        try:
            first = json.loads(self.store.compare_set(FAILURE, "", mine))
        except (RuntimeError, ValueError):
            return None  # nobody keeps the store any more: better said twice than never
        return None if first["rank"] == self.rank else PeerError(first["rank"], first["code"])

    def named(self, error: BaseException) -> FledgeError | None:
        """Who is missing, where a message from another process didn't come: asked of the store after a moment in which
        whoever failed can say so, and all who wait say that they wait."""
        try:
            self.store.set(f"waiting/{self.rank}", "1")
            until = time.monotonic() + SETTLE_SECONDS
            while time.monotonic() < until and not self.store.check([FAILURE]):
                time.sleep(0.1)
            self.missing = [r for r in range(self.world_size) if not self.store.check([f"waiting/{r}"])]
        except RuntimeError:
            self.missing = [0]
        who = ", ".join(map(str, self.missing)) or "?"
        said = " ".join(str(error).split())[:160]
        lost = RankError(
            f"rank {who}: expected an answer within {self.config.at}.timeout_seconds={self.timeout_seconds:g}, got "
            f"none: it hangs, was killed or can't be reached ({said}); {self.config.remedy}"
        )
        return self.tell(lost) or lost


ALONE = Group(Place())


def lost_another(error: BaseException) -> bool:
    """Whether an error says that a message from another process didn't come."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(word in text for word in LOST)


@contextmanager
def joined(config: ParallelConfig | SplitConfig, device: str = "auto") -> Iterator[Group]:
    """The group that this process is started in, ready to talk; `ALONE` without a launcher.

    Raises ConfigError for a mesh that is not the number of processes. An error inside ends every process of the group:
    the first to fail raises its own, all others PeerError with its exit code; RankError names a process that is gone.
    """
    place = place_of_process()
    config.sizes(place.world_size)
    if place.world_size == 1:
        yield ALONE
        return
    group = started(place, config, device)
    try:
        yield group
        group.wait()
    except BaseException as error:
        instead = group.failed(error)
        if instead is not None:
            raise instead from error
        raise
    group.leave()


def started(place: Place, config: ParallelConfig | SplitConfig, device: str) -> Group:
    import torch.distributed as dist

    wait = timedelta(seconds=config.timeout_seconds)
    try:
        gpu = device != "cpu" and torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(place.local_rank)
        if dist.is_initialized():
            return joined_to(place, config, "cuda" if gpu else "cpu", 2 * wait)
        # the store's own waits must outlast the group's, whose errors it explains
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=2 * wait)))
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=place.rank, world_size=place.world_size, timeout=wait
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"rank {place.rank}: expected {place.world_size} processes to meet at MASTER_ADDR:MASTER_PORT, got "
            f"{' '.join(str(error).split())[:200]}; start all of them with torchrun"
        ) from None
    return Group(place, dist.PrefixStore("run", store), config)


def joined_to(place: Place, config: ParallelConfig | SplitConfig, device: str, patience: timedelta) -> Group:
    """The group in a process group that stands already and stays. Raises ConfigError for one that can't carry a run."""
    import torch.distributed as dist

    stands = (dist.get_rank(), dist.get_world_size())
    if stands != (place.rank, place.world_size):
        raise ConfigError(
            f"RANK, WORLD_SIZE: expected those of the process group, {stands[0]} of {stands[1]}, got {place.rank} of "
            f"{place.world_size}; let the launcher set them"
        )
    carried = {part.partition(":")[0] for part in dist.get_backend_config().split(",")}
    if not {"cpu", device} <= carried:
        wanted = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        raise ConfigError(
            f"process group: expected one for tensors of {device} and cpu, got {dist.get_backend_config()}; have the "
            f"launcher make it with backend {wanted} (Ray Train: TorchConfig)"
        )
    address, port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", ""))
    store = dist.TCPStore(address, port, is_master=False, timeout=patience)
    turn = store.add(f"fledge/turns/{place.rank}", 1)  # a run before this one left its notes
    return Group(place, dist.PrefixStore(f"fledge/{turn}", store), config, standing())


def standing() -> list[Any]:
    """Every process group of this process."""
    import torch.distributed as dist

    return list(dist.distributed_c10d._world.pg_map)


def left() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()
