"""Planted faults, for tests only: `FLEDGE_FAULTS="nan_loss@12,kill@publish"`. Without the variable: inert."""

from __future__ import annotations

import os


class Faults:
    """Which faults this run has been asked for. `due(name, index)` is true where one stands."""

    def __init__(self, text: str | None = None):
        text = os.environ.get("FLEDGE_FAULTS", "") if text is None else text
        self._planted = {part.strip() for part in text.split(",") if part.strip()}

    def due(self, name: str, index: int | str) -> bool:
        """Whether fault `name` is planted at `index`."""
        return f"{name}@{index}" in self._planted
