"""Real processes of one gloo group, forked from the server that has imported torch, each running one function."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.trials.tiny import SERVER

SECONDS = 240


def at_work(
    work: Callable[..., Any], n_ranks: int, folder: Path, *more: Any, silence_seconds: float = SECONDS / 2
) -> list[int]:
    """Run `work(folder, *more)` on each rank; the exit codes. What one raised stands in `folder/rank-N.error`. A rank
    that is silent for `silence_seconds` counts as gone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        SERVER.Process(target=one_rank, args=(work, rank, n_ranks, port, folder, silence_seconds, more))
        for rank in range(n_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def one_rank(
    work: Callable[..., Any],
    rank: int,
    size: int,
    port: int,
    folder: Path,
    silence_seconds: float,
    more: tuple[Any, ...],
) -> None:
    import torch.distributed as distributed

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    try:
        distributed.init_process_group("gloo", timeout=timedelta(seconds=silence_seconds))
        work(folder, *more)
        distributed.destroy_process_group()
    except BaseException as error:
        (folder / f"rank-{rank}.error").write_text(f"{error}\n{type(error).__name__}\n{traceback.format_exc()}")
        os._exit(1)  # no goodbye to ranks that may be gone


def errors(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.error")))
