"""When a run has waited long enough for a better validation."""

from __future__ import annotations

import math

from fledge.train.checkpointing import State
from fledge.train.config import TrainConfig


def note(state: State, val_loss: float, min_delta: float) -> bool:
    """Take a validation on the way (`val_loss` NaN or infinite counts as no better one); whether it is the best so far.

    `state.waited` counts those since the last that was lower than the one before it by at least `min_delta` (and by
    something): many small steps down that add up to `min_delta` are an improvement too."""
    better = math.isfinite(val_loss) and (state.best_val_loss is None or val_loss < state.best_val_loss)
    since = state.waited_from
    enough = better and (since is None or since - val_loss >= min_delta)
    state.waited = 0 if enough else state.waited + 1
    if enough:
        state.waited_from = val_loss
    return better


def is_out(state: State, config: TrainConfig) -> bool:
    """Whether the run ends here, short of its last step."""
    return 0 < config.patience <= state.waited and state.step < config.steps
