"""One live process a run folder. The lock is the operating system's, so a killed owner leaves none behind."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from fledge.errors import ConfigError, RunLockedError
from fledge.lineage import make_folder

LOCK = "run.lock"


class RunLock:
    """Holds `folder/run.lock` while in a `with`. Raises RunLockedError naming the owner if another process has it, and
    ConfigError where the folder can't be written or locked."""

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / LOCK
        self._file: TextIO | None = None

    def __enter__(self) -> RunLock:
        make_folder(self.path.parent)
        try:
            file = open(self.path, "a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{self.path}: expected a folder to write in, got {error.strerror}; use another run.dir"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = describe(file.read())
            file.close()
            raise RunLockedError(f"{self.path.parent}: in use by {owner}; stop it or use another run.dir") from None
        except OSError as error:
            file.close()
            raise ConfigError(
                f"{self.path}: expected a file system with locks, got {error.strerror}; use another run.dir"
            ) from None
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time())}, file)
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
            self._file.close()
            self._file = None


def describe(text: str) -> str:
    try:
        owner = json.loads(text)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        return f"process {owner['pid']} on {owner['host']} since {since}"
    except (ValueError, KeyError, TypeError):
        return "another process"
