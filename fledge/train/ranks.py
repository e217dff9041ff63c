"""The processes of a distributed run as a checkpoint needs them: who am I, how many are we, what does everyone say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fledge.errors import CheckpointError, FledgeError, NonFiniteError
from fledge.parallel.group import Group

HURRY_SECONDS = 5.0
"""How long the others are waited for once one of them is known to be gone."""
Result = TypeVar("Result")


class Ranks(Protocol):
    """`rank` of `size`."""

    rank: int
    size: int

    def exchange(self, value: Any) -> list[Any]:
        """The plain value that each rank gave, in order; nobody goes on before all have."""

    def behind(self, name: str) -> Ranks:
        """The same ranks, for a thread beside this one. `name`: one that was not used before."""

    def hurry(self) -> None:
        """One of them is gone: don't wait long for the others any more."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def exchange(self, value: Any) -> list[Any]:
        return [value]

    def behind(self, name: str) -> Ranks:
        return self

    def hurry(self) -> None:
        pass


def ranks_of(group: Group) -> Ranks:
    """The processes of a run as checkpoints know them."""
    return Alone() if group.alone else GlooRanks(group.store, group.timeout_seconds)


class GlooRanks:
    """The ranks of torch.distributed's default group, which talk JSON through its collectives: for one thread alone,
    and one that is gone is noticed at once, as the RuntimeError of a connection. `store`: what other threads use."""

    def __init__(self, store: Any, timeout_seconds: float):
        import torch.distributed as distributed

        self.distributed, self.store, self.timeout_seconds = distributed, store, timeout_seconds
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def exchange(self, value: Any) -> list[Any]:
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gathered(torch.tensor([mine.numel()]))
        padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
        padded[: mine.numel()] = mine
        texts = self.gathered(padded)
        return [json.loads(bytes(text[: int(n)].tolist())) for text, n in zip(texts, lengths, strict=True)]

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        self.distributed.all_gather(every, tensor)
        return every

    def behind(self, name: str) -> Ranks:
        return StoreRanks(self.distributed.PrefixStore(name, self.store), self.rank, self.size, self.timeout_seconds)

    def hurry(self) -> None:
        pass


class StoreRanks:
    """Ranks that leave each other notes in a store, and so never meet the collectives of another thread. They look
    again and again rather than wait inside the store, whose connection other threads use too."""

    def __init__(self, store: Any, rank: int, size: int, patience_seconds: float):
        self.store, self.rank, self.size, self.patience_seconds = store, rank, size, patience_seconds
        self.turn = 0

    def exchange(self, value: Any) -> list[Any]:
        """Raises CheckpointError for a rank whose note doesn't come in time."""
        turn, self.turn = self.turn, self.turn + 1
        try:
            self.store.set(f"{turn}/{self.rank}", json.dumps(value))
            told = [self.note_of(turn, rank) for rank in range(self.size)]
            if turn:  # all have read those of the turn before
                self.store.delete_key(f"{turn - 1}/{self.rank}")
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"rank {self.rank}: lost the other ranks ({reason:.120}); the same command continues from the last "
                "checkpoint"
            ) from None
        return told

    def note_of(self, turn: int, rank: int) -> Any:
        began, pause = time.monotonic(), 0.002
        while not self.store.check([f"{turn}/{rank}"]):
            if time.monotonic() - began > self.patience_seconds:
                raise CheckpointError(
                    f"rank {rank}: expected its part of the checkpoint within {self.patience_seconds:g} s, got none; "
                    "the same command continues from the last checkpoint"
                )
            time.sleep(pause)
            pause = min(0.1, 2 * pause)
        return json.loads(self.store.get(f"{turn}/{rank}"))

    def behind(self, name: str) -> Ranks:
        return self

    def hurry(self) -> None:
        self.patience_seconds = min(self.patience_seconds, HURRY_SECONDS)


def unread(error: OSError) -> CheckpointError:
    """What the system's refusal means for what was to be read."""
    return CheckpointError(f"{error.filename}: can't be read ({error.strerror}); mend it and run again")


class Team:
    """Steps that all ranks take together: what stops one stops all, with the same error. `explain` makes one of the
    system's refusals."""

    def __init__(self, ranks: Ranks, explain: Callable[[OSError], CheckpointError] = unread):
        self.ranks, self.explain = ranks, explain

    def all(self, work: Callable[[], Result]) -> list[Result]:
        """What `work`, a plain value, gave on each rank."""
        value: Result | None = None
        failure: Exception | None = None
        try:
            value = work()
        except OSError as refusal:
            failure = self.explain(refusal)
        except Exception as error:  # of any kind: the others wait for this rank's word
            failure = error
        told = self.ranks.exchange([value, said(failure)])
        if failure is not None and (self.ranks.size == 1 or not isinstance(failure, FledgeError)):
            raise failure
        for rank, (_, word) in enumerate(told):
            if word is not None:
                raise (NonFiniteError if word[0] else CheckpointError)(f"rank {rank}: {word[1]}")
        return [value for value, _ in told]

    def first(self, work: Callable[[], None]) -> None:
        """`work` on rank 0, the others waiting."""
        self.all(work if self.ranks.rank == 0 else lambda: None)


def said(failure: Exception | None) -> tuple[bool, str] | None:
    if failure is None:
        return None
    text = str(failure) if isinstance(failure, FledgeError) else f"{type(failure).__name__}: {failure}"
    return isinstance(failure, NonFiniteError), text
