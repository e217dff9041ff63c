"""Which parameter is moved how: by which optimizer, at which share of the rate, with which decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from fledge.errors import ConfigError
from fledge.nn.linear import Linear
from fledge.optim.config import GroupConfig, Method


@dataclass(frozen=True)
class Member:
    """A trained parameter and how it is moved."""

    name: str
    parameter: nn.Parameter
    method: Method
    rate: float
    weight_decay: float


def members(model: nn.Module, method: Method, weight_decay: float, groups: Sequence[GroupConfig] = ()) -> list[Member]:
    """Every trained parameter, matrices before vectors. Without a group matrices decay by `weight_decay`, vectors
    (norms, biases) don't, and "muon" takes the matrices of maps inside blocks only.

    Raises ConfigError for a pattern without a parameter of its own, and for muon on what is no matrix.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = hidden_matrices(model)
    unused = dict.fromkeys(group.pattern for group in groups)
    found = []
    for name, parameter in sorted(trained, key=lambda item: item[1].dim() < 2):
        own: Method = "muon" if method == "muon" and name in inner else "adamw"
        rate, decay = 1.0, weight_decay if parameter.dim() >= 2 else 0.0
        group = next((g for g in groups if fnmatchcase(name, g.pattern)), None)
        if group is not None:
            unused.pop(group.pattern, None)
            rate, own = group.rate, group.optimizer or own
            decay = decay if group.weight_decay is None else group.weight_decay
        if own == "muon" and parameter.dim() != 2:
            shape = list(parameter.shape)
            raise ConfigError(f"train.groups: expected matrices for muon, got {name} of shape {shape}; use adamw there")
        found.append(Member(name, parameter, own, rate, decay))
    if unused:
        example = ", ".join(name for name, _ in trained[:3])
        raise ConfigError(
            f"train.groups: expected a parameter for each pattern, got none that {next(iter(unused))!r} is the first "
            f"to match; names are {example}…"
        )
    return found


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the matrices of maps inside blocks: no embedding, position table, head or output matrix."""
    kinds = (Linear, nn.Linear)
    owners = {name for name, module in model.named_modules() if isinstance(module, kinds) and ".layers." in f".{name}"}
    return {f"{owner}.weight" for owner in owners}


def together(found: Sequence[Member]) -> dict[tuple[float, float], list[Member]]:
    """Members by (rate, weight decay), in the order of their first."""
    by: dict[tuple[float, float], list[Member]] = {}
    for member in found:
        by.setdefault((member.rate, member.weight_decay), []).append(member)
    return by
