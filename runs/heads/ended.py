"""One `fledge finetune` in a process of its own, unless it has ended: its CPU seconds and its result."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def ended(words: list[str], folder: Path) -> dict[str, Any]:
    """`cpu_seconds` and `result` of the run in `folder`, kept there as cost.json."""
    kept = folder / "cost.json"
    if not kept.is_file():
        line = [sys.executable, "-m", "fledge", "finetune", *words, f"run.dir={folder}", "--json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        kept.write_text(json.dumps({"cpu_seconds": seconds, "result": json.loads(done.stdout.splitlines()[-1])}))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found
