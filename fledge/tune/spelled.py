"""Modules of a base whose class in transformers names them in another way: DeBERTa's output with `legacy` false."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from fledge.errors import ConfigError
from fledge.model.families import family
from fledge.model.folder import find_model
from fledge.model.names import expanded
from fledge.model.spelling import as_spelled
from fledge.model.transformer import Transformer
from fledge.model.weight_files import opened
from fledge.tune.attach import adapters
from fledge.tune.sites import OUTPUT


def spelled(model: Transformer, base: Path) -> dict[str, str]:
    """Usual name of a module -> its name in the class of `base`, for those that differ. Raises ConfigError for an
    adapter of an output that is no module there."""
    usual = family(model.config.family)
    if not usual.spellings:
        return {}
    with ExitStack() as files:
        theirs = as_spelled(usual, model.config, set(opened(find_model(base), files)))
    if theirs is usual:
        return {}
    named = {row.ours: row.theirs for row in expanded(theirs, model.config)}
    found = {
        row.theirs.removesuffix(".weight"): named[row.ours].removesuffix(".weight")
        for row in expanded(usual, model.config)
        if row.ours in named and row.theirs != named[row.ours]
    }
    if found and any(place.path == OUTPUT for place, _ in adapters(model)):
        raise ConfigError(
            f"tune.targets: expected modules of the model in {base}, got the output, which with legacy false is none "
            "in transformers; leave it out"
        )
    return found
