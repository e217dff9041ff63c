"""Steps to learn from, outside of any run: nothing is written, and what they move is thrown away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fledge.device import Device
from fledge.log import RunLog
from fledge.train.checkpointing import State
from fledge.train.config import TrainConfig
from fledge.train.loop import Loop, Run
from fledge.train.recipe import Recipe
from fledge.train.signals import StopRequest

WRITES_NOTHING = 1  # a log of another rank than the first


def trial_loop(recipe: Recipe, train: TrainConfig, device: Device, config: Any = None) -> Loop:
    """A loop over `recipe` from step 0. It has no folder: call its steps, not its saves."""
    log = RunLog(os.devnull, WRITES_NOTHING)
    return Loop(Run(Path(os.devnull), config, train, device, recipe, log), State(), StopRequest())
