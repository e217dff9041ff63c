"""The files by which an adapter's folder tells its kind and its head, and the base that it names. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.errors import CheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "head.json"  # the task head that was trained beside the adapter (fledge/tune/told_head.py)


def base_of(raw: dict[str, Any], folder: Path) -> Path:
    """The folder of the base that an adapter names, as it is or seen from the adapter's own. Raises CheckpointError if
    there is none: nothing is downloaded."""
    name = raw.get("base_model_name_or_path")
    if isinstance(name, str) and name and "\0" not in name and len(name) < 4096:
        for candidate in (Path(name), folder / name):
            try:
                if candidate.is_dir():
                    return candidate
            except OSError:  # a name too long to be looked for
                continue
    raise CheckpointError(
        f"{folder / CONFIG}: expected base_model_name_or_path to be a folder here, got {str(name)[:80]!r}; put the "
        "base there, or name it: fledge merge BASE ADAPTER --out FOLDER"
    )
