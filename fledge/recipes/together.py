"""Work on a list that several processes share: each does its part, and all have the whole of what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fledge.errors import DataError, FledgeError, PeerError
from fledge.parallel.group import Group
from fledge.train.ranks import ranks_of


def share(n: int, group: Group) -> range:
    """Which of `n` things in order are this process's."""
    return range(n * group.rank // group.world_size, n * (group.rank + 1) // group.world_size)


def told(group: Group, work: Callable[[], Any]) -> list[Any]:
    """What `work`, a plain value, gave in each process, in order of ranks.

    An error of one is raised there, and by the others as DataError if it is one, which all then answer alike, or as
    PeerError."""
    value, failure = None, None
    try:
        value = work()
    except Exception as error:  # of any kind: the others wait for this process's word
        failure = error
    code = failure.exit_code if isinstance(failure, FledgeError) else 1
    word = None if failure is None else [isinstance(failure, DataError), code, str(failure)]
    found = ranks_of(group).exchange([value, word])
    if failure is not None:
        raise failure
    for rank, (_, said) in enumerate(found):
        if said is not None:
            raise DataError(f"rank {rank}: {said[2]}") if said[0] else PeerError(rank, said[1])
    return [value for value, _ in found]
