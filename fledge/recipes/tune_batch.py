"""`fledge tune batch`: how many rows of a pre-training to compute at once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fledge import device as devices
from fledge.log import say
from fledge.recipes.config import TuneBatchConfig
from fledge.recipes.pretrain import fresh_recipe
from fledge.train.autotune import choose_micro_rows, memory_limit


def tune_batch(config: TuneBatchConfig, json: bool = False) -> dict[str, Any]:
    """Count and try micro-batches, the largest first; gives `micro_rows`, the limit in bytes and every trial.

    Raises ConfigError if not one row fits.
    """
    device = devices.pick(config.train.device, "float32", config.train.threads)
    recipe = fresh_recipe(config, config.out)
    recipe.model.to(device.device)
    limit = config.memory_bytes or memory_limit(recipe, device, config.memory_share)
    tried = choose_micro_rows(recipe, config.train, device, limit)
    for one in tried:
        counted, measured = (f"{n:,}" if n is not None else "not known" for n in (one.counted, one.measured))
        say(f"{one.micro_rows} rows: counted {counted}, measured {measured} bytes{'' if one.fits else ', too many'}")
    if not json:
        print(f"train.micro_rows={tried[-1].micro_rows} of {config.train.rows} rows, within {limit:,} bytes")
    return {"micro_rows": tried[-1].micro_rows, "limit_bytes": limit, "tried": [asdict(one) for one in tried]}
