"""Pruning by weights and activations (Wanda, Sun et al. 2023, arXiv 2306.11695): what a weight is worth is its size
times the size of what it reads. No gradient, no second pass.

R rows, T tokens, O outputs, I inputs of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fledge.compress.calibration import Walk
from fledge.compress.units import units_of
from fledge.model.transformer import Transformer


@torch.no_grad()
def zero_least_used(model: Transformer, rows: Tensor, share: float) -> Transformer:
    """`model` of whose linear maps inside the blocks each output has lost the `share` of its inputs that is worth least
    on text [R, T]. Block after block: each reads what the pruned ones before it give. Maps that no token of the text
    reached, as an expert's can be, lose their smallest weights."""
    units, walk = units_of(model), Walk(model, rows)
    for index, block in walk.blocks():
        # all of a block is heard before any of it is pruned, as in the paper
        heard = [(unit, walk.moments(unit, index)) for unit in units if unit.block is block]
        for unit, moments in heard:
            size_I = moments.hessian.diagonal().sqrt() if moments.n else torch.ones_like(moments.mean_abs)
            for part in unit.maps.values():
                part.weight.masked_fill_(least(part.weight, size_I, share), 0.0)
    return model


def least(weight_OI: Tensor, size_I: Tensor, share: float) -> Tensor:
    """bool [O, I]: of each row the `share` with the least |w| · ‖x‖ (eq. 1; the mean square over tokens in place of the
    sum, which orders them alike)."""
    worth = weight_OI.abs() * size_I
    n = round(share * weight_OI.shape[1])
    return torch.zeros_like(worth, dtype=torch.bool).scatter_(1, worth.sort(dim=1, stable=True).indices[:, :n], True)
