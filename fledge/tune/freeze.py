"""Weights that stay as they are while the others are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from fledge.errors import ConfigError
from fledge.model.folder import weights_in_files
from fledge.model.transformer import Transformer
from fledge.tune.config import matches


def freeze_parts(model: Transformer, patterns: Sequence[str]) -> Transformer:
    """`model`, with the weights of the modules that `patterns` mean, and of all in them, no longer trained.

    Raises ConfigError for a pattern that means none, and where nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    used: set[str] = set()
    for theirs, row in weights_in_files(model.config).items():
        for ours in row.ours:
            names = {*modules_around(theirs), *modules_around(ours)}
            hits = {pattern for pattern in patterns if any(matches(pattern, name) for name in names)}
            used |= hits
            if hits:
                parameters[ours].requires_grad_(False)
    unused = [pattern for pattern in patterns if pattern not in used]
    if unused:
        raise ConfigError(f"tune.freeze: expected names of modules, got {unused[0][:80]!r}, which means none")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("tune.freeze: expected to leave something to train, got nothing left; freeze less")
    return model


def modules_around(name: str) -> Iterator[str]:
    """`a.b.c` -> a, a.b, a.b.c: a weight and the modules that it is in."""
    return accumulate(name.split("."), lambda path, word: f"{path}.{word}")
