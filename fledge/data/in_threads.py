"""Work over a stream of items in several threads, in the items' order, a bounded number of them under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items under way for each thread


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], n_threads: int) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) for every item, in their order: which thread did it changes nothing. `work` gains from threads
    as far as it runs outside of Python, as tokenizers and numpy do. An error in one item is raised at its turn."""
    if n_threads <= 1:
        for item in items:
            yield item, work(item)
        return
    under_way: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for item in items:
                under_way.append((item, pool.submit(work, item)))
                if len(under_way) >= AHEAD * n_threads:
                    done, result = under_way.popleft()
                    yield done, result.result()
            while under_way:
                done, result = under_way.popleft()
                yield done, result.result()
        finally:
            for _, result in under_way:
                result.cancel()


def grouped(texts: Iterable[Item], length: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """The items in lists whose lengths sum to `most` or a little more: enough work for a thread to be worth it."""
    group: list[Item] = []
    size = 0
    for text in texts:
        group.append(text)
        size += length(text)
        if size >= most:
            yield group
            group, size = [], 0
    if group:
        yield group


def threads_to_use(wanted: int) -> int:
    """The number asked for; 0: one for each core that this process may use."""
    if wanted:
        return wanted
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
