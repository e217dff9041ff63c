"""What tuning adds to a linear map or an embedding: a low-rank update, a scale of what goes in or out, a bottleneck.

I inputs, O outputs, r rank, V vocabulary, D width. An adapter stands beside the weights it changes, which stay as they
are: `x = adapter.before(x)`, then `y = adapter(x, y, weight, bias)` of the map's own y; `weight` is called for the
matrix [O, I] by those that read it, since whole numbers are turned into one for that alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adapter(nn.Module):
    """A change of one linear map, or of several of one input that stand side by side."""

    dropout = 0.0

    def before(self, x: Tensor) -> Tensor:
        """What the map reads in place of x [..., I]."""
        return x

    def forward(self, x: Tensor, y: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """The changed output from what the map read and gave: [..., O]. `weight` gives [O, I]."""
        return y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight [O, I] and bias [O] of a map that gives by itself what this makes of it."""
        return weight, bias


class LowRank(Adapter):
    """y + scale · B A x (LoRA: Hu et al. 2021, arXiv 2106.09685): `down` is A [r, I], `up` is B [O, r].

    With `magnitude` m [O] the direction and the length of each output's row are apart (DoRA: Liu et al. 2024, arXiv
    2402.09353, eq. 5): W becomes m · (W + scale · B A) / its rows' lengths, which get no gradient (§4.3).
    """

    def __init__(
        self, inputs: int, outputs: int, rank: int, scale: float, dropout: float = 0.0, magnitude: bool = False
    ):
        super().__init__()
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.down, self.up = nn.Parameter(torch.empty(rank, inputs)), nn.Parameter(torch.empty(outputs, rank))
        self.magnitude = nn.Parameter(torch.empty(outputs)) if magnitude else None

    def forward(self, x: Tensor, y: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        dropped = self.dropout and self.training
        read = F.dropout(x, self.dropout) if dropped else x
        added = F.linear(F.linear(read, self.down), self.up) * self.scale
        if self.magnitude is None:
            return y + added
        matrix = weight()
        own = F.linear(read, matrix) if dropped else y if bias is None else y - bias
        share = self.magnitude / self.lengths(matrix)
        return y + ((share - 1) * own + share * added)

    def update(self) -> Tensor:
        """scale · B A: [O, I]."""
        return self.scale * (self.up @ self.down)

    @torch.no_grad()
    def lengths(self, weight: Tensor) -> Tensor:
        """Of the rows of the updated weight: [O]."""
        return torch.linalg.vector_norm(weight + self.update(), dim=1)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        updated = weight + self.update()
        if self.magnitude is not None:
            updated = updated * (self.magnitude / self.lengths(weight))[:, None]
        return updated, bias


class LowRankEmbedding(Adapter):
    """A low-rank update of a table [V, D]: `down` is A [r, V], `up` is B [D, r], as PEFT has them."""

    def __init__(self, vocab: int, width: int, rank: int, scale: float):
        super().__init__()
        self.rank, self.scale = rank, scale
        self.down, self.up = nn.Parameter(torch.empty(rank, vocab)), nn.Parameter(torch.empty(width, rank))

    def looked_up(self, ids: Tensor, y: Tensor) -> Tensor:
        """The changed rows y [..., D] of ids [...]."""
        return y + F.linear(F.embedding(ids, self.down.t()), self.up) * self.scale

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        updated = weight.clone()  # rows that fill the vocabulary up stay
        updated[: self.down.shape[1]] += self.scale * (self.up @ self.down).t()
        return updated, bias


class Scale(Adapter):
    """(IA)^3 (Liu et al. 2022, arXiv 2205.05638, §3.3): what comes out, or what goes in, times a learned vector."""

    def __init__(self, size: int, side: Literal["in", "out"]):
        super().__init__()
        self.side = side
        self.vector = nn.Parameter(torch.empty(size))

    def before(self, x: Tensor) -> Tensor:
        return x * self.vector if self.side == "in" else x

    def forward(self, x: Tensor, y: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        return y * self.vector if self.side == "out" else y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.side == "in":
            return weight * self.vector, bias
        return weight * self.vector[:, None], None if bias is None else bias * self.vector


class Bottleneck(Adapter):
    """y + U f(D y + b) + c of a map's output y: `down` is D [m, O], `up` is U [O, m] (Houlsby et al. 2019, arXiv
    1902.00751, §2.1). It is no linear change, so that it stays beside the map."""

    def __init__(self, outputs: int, size: int, activation: Literal["gelu", "relu", "silu"] = "gelu"):
        super().__init__()
        self.activation = activation
        self.down, self.down_bias = nn.Parameter(torch.empty(size, outputs)), nn.Parameter(torch.empty(size))
        self.up, self.up_bias = nn.Parameter(torch.empty(outputs, size)), nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor, y: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        hidden = ACTIVATIONS[self.activation](F.linear(y, self.down, self.down_bias))
        return y + F.linear(hidden, self.up, self.up_bias)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
