"""Linear maps behind one face: `y = map(x)`. Several maps of one input stand side by side in `Joined`.

The parameters stay separate (q, k, v, gate, up: names and adapters need that); joining their outputs in one product is
the caller's gain. `pack` stores weights input-first for inference: the engine's own step on a built model.
Shapes: x [..., I] -> [..., O]. Weights are [O, I]; packed ones [I, O].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x Wᵀ + b, the weight left as it is allocated (`fledge.model.init` gives it values)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Joined(nn.Module):
    """Named linears of one input; the outputs stand side by side: [..., Σ O]. `sizes` are the O's in order. Those in
    `unbiased` have no bias even where the others do."""

    def __init__(self, inputs: int, outputs: dict[str, int], bias: bool = False, unbiased: tuple[str, ...] = ()):
        super().__init__()
        self.sizes = tuple(outputs.values())
        for name, size in outputs.items():
            self.add_module(name, Linear(inputs, size, bias and name not in unbiased))

    def maps(self) -> list[Linear]:
        return [child for child in self.children() if isinstance(child, Linear)]

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps()
        if len(maps) == 1:
            return maps[0](x)
        # one product of the stacked weights reads x once; copying the weights costs less than reading x again
        return F.linear(x, torch.cat([m.weight for m in maps]), joined_bias(maps))


def joined_bias(maps: list[Linear]) -> Tensor | None:
    """The biases side by side, zeros for a linear without one; None if none has one."""
    if all(m.bias is None for m in maps):
        return None
    return torch.cat([m.weight.new_zeros(m.weight.shape[0]) if m.bias is None else m.bias for m in maps])


class PackedLinear(nn.Module):
    """An inference copy: weight [I, O] in one piece, `y = x W + b`. Holds no parameters: refresh it with `load`."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        rows = x.reshape(-1, x.shape[-1])
        y = torch.mm(rows, weight) if bias is None else torch.addmm(bias, rows, weight)
        return y.view(*x.shape[:-1], y.shape[-1])


def pack(module: Linear | Joined) -> PackedLinear:
    """The packed inference copy of a Linear or a Joined."""
    maps = module.maps() if isinstance(module, Joined) else [module]
    with torch.no_grad():
        weight = torch.cat([m.weight for m in maps]).t().contiguous()
        bias = joined_bias(maps)
    return PackedLinear(weight, bias)
