"""Adapters in the engine's process: those that it starts with, and others that are read while answers go on."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledge.engine.load import Files, files_in
from fledge.errors import CheckpointError, EngineError, FledgeError

if TYPE_CHECKING:
    from fledge.engine.core import Engine
    from fledge.tune.changes import Changes


def read(engine: Engine, folder: str) -> tuple[Changes, Files]:
    """What an adapter changes, and the state of its files. Raises CheckpointError if they changed meanwhile, and
    ConfigError and CheckpointError as `changes_of` does."""
    from fledge.tune.folder import adapter_folder

    place = adapter_folder(folder) or Path(folder)
    before = files_in(place) if place.is_dir() else []
    changes = engine.runner.read_adapter(folder)
    if before != files_in(place):
        raise CheckpointError(f"{folder}: expected files that stay, got others while they were read; load it again")
    return changes, before


def stand(engine: Engine, adapters: dict[str, Any]) -> dict[str, Files]:
    """Load adapters, given by name as [folder, state of the files or None]; the state of their files. One whose files
    are no more what they were is left out, and told: whoever replaced them has to load it. Raises what `read` raises
    for one that has no state yet."""
    loaded = {}
    for name, (folder, known) in adapters.items():
        try:
            changes, files = read(engine, folder)
            if known is not None and files != known:
                raise CheckpointError(f"{folder}: expected the files as they were, got others; load it again")
            engine.shelf.load(name, changes)
        except (FledgeError, OSError) as error:
            if known is None:
                raise
            print(f"engine: adapter {name} is no more served: {error}", file=sys.stderr)
            continue
        loaded[name] = files
    return loaded


def read_in_thread(engine: Engine, frame: dict[str, Any], put: Callable[[dict[str, Any]], None]) -> None:
    """Read what a frame asks for while answers go on; then `put` the frame with what was read, or with the error."""

    def work() -> None:
        outcome: Any
        try:
            outcome = read(engine, frame["folder"])
        except FledgeError as error:
            outcome = error
        except Exception as error:
            traceback.print_exception(error)
            outcome = EngineError(f"engine: the adapter could not be read ({type(error).__name__})")
        put({**frame, "kind": "adapter_read", "outcome": outcome})

    threading.Thread(target=work, daemon=True).start()
