"""Linear maps behind one face: `y = map(x)`. Several maps of one input stand side by side in `Joined`.

The parameters stay separate (q, k, v, gate, up: names and adapters need that) but lie together in memory, so that one
product computes all of them. `pack` stores weights input-first for inference: the engine's own step on a built model.
Shapes: x [..., I] -> [..., O]. Weights are [O, I]; packed ones [I, O].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.nn.adapter import Adapter
from fledge.nn.native.library import library
from fledge.nn.native.linear import Parts, float_linear, int4_linear, int8_linear
from fledge.nn.quantized import Int4Linear, Int8Linear, Quantized, nibbles, side_by_side


class Linear(nn.Module):
    """y = x Wᵀ + b, the weight left as it is allocated (`fledge.model.init` gives it values). `adapter`: what tuning
    makes of it (see `fledge.tune`)."""

    adapter: Adapter | None

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.adapter = None

    def forward(self, x: Tensor) -> Tensor:
        if self.adapter is None:
            return F.linear(x, self.weight, self.bias)
        x = self.adapter.before(x)
        return self.adapter(x, F.linear(x, self.weight, self.bias), lambda: self.weight, self.bias)


class Joined(nn.Module):
    """Named linears of one input; the outputs stand side by side: [..., Σ O]. `sizes` are the O's in order. Those in
    `unbiased` have no bias even where the others do. `adapter` changes all of them as one, those of the linears one."""

    adapter: Adapter | None

    def __init__(self, inputs: int, outputs: dict[str, int], bias: bool = False, unbiased: tuple[str, ...] = ()):
        super().__init__()
        self.sizes = tuple(outputs.values())
        self.adapter = None
        for name, size in outputs.items():
            self.add_module(name, Linear(inputs, size, bias and name not in unbiased))
        if len(self.sizes) > 1:
            lay_together([one.weight for one in self.maps()])

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]  # torch's: what .to() and .half() do
        """Weights that were moved lie together again, before a compiled pass could ask where they are."""
        super()._apply(fn, recurse)
        if self.is_plain():
            weights = [one.weight for one in self.maps()]
            if len(weights) > 1 and not adjacent(weights):
                lay_together(weights)
        return self

    def maps(self) -> list[Linear]:
        """Those that hold a weight in floating point: all of them in a model that is not quantized."""
        return [child for child in self.children() if isinstance(child, Linear)]

    def parts(self) -> dict[str, nn.Module]:
        """The maps by name, whatever holds their weights."""
        return {name: child for name, child in self.named_children() if not isinstance(child, Adapter)}

    def is_plain(self) -> bool:
        return all(isinstance(child, Linear) for child in self.parts().values())

    def forward(self, x: Tensor, apart: bool = False) -> Tensor | Sequence[Tensor]:
        """`apart`, where `may_part` allows it: each map's output by itself, [..., O] in order."""
        if apart:
            return self.separate(x)
        if self.adapter is None and all(one.adapter is None for one in self.maps()):
            return self.product(x)
        x = x if self.adapter is None else self.adapter.before(x)
        return self.adapted(x, self.product(x))

    def adapted(self, x: Tensor, y: Tensor) -> Tensor:
        """What the adapters make of the product y [..., Σ O] of x [..., I]."""
        maps = self.maps()
        # a single map has seen to its own, and so have maps that are not all plain
        if len(maps) > 1 and self.is_plain() and any(one.adapter is not None for one in maps):
            pieces = [
                part if one.adapter is None else one.adapter(x, part, partial(matrix_of, [one]), one.bias)
                for one, part in zip(maps, y.split(self.sizes, -1), strict=True)
            ]
            y = torch.cat(pieces, -1)
        parts = list(self.parts().values())
        return y if self.adapter is None else self.adapter(x, y, partial(matrix_of, parts), joined_bias(parts))

    def product(self, x: Tensor) -> Tensor:
        """What the maps give by themselves."""
        maps = self.maps()
        if not self.is_plain():
            return torch.cat([child(x) for child in self.parts().values()], -1)
        if len(maps) == 1:
            return maps[0](x)
        weights: list[Tensor] = [one.weight for one in maps]
        bias = joined_bias(maps)
        if torch.is_autocast_enabled(x.device.type):
            return F.linear(x, torch.cat(weights), bias)
        if not torch.compiler.is_compiling() and not adjacent(weights):
            lay_together(weights)
        if not torch.is_grad_enabled():
            return times(x, bias, weights)
        return Together.apply(x.flatten(0, -2), bias, *weights).unflatten(0, x.shape[:-1])

    def may_part(self, x: Tensor) -> bool:
        """Whether outputs may be computed apart, which pays on a CPU: one product into rows of Σ O is up to a tenth
        slower there."""
        return x.device.type == "cpu" and self.adapter is None and self.is_plain()

    def part_compiled(self, x: Tensor) -> bool:
        """Whether this is a compiled pass without gradients that had better compute its outputs apart: the products
        cost the same there, and what reads them (attention above all) finds its rows close together."""
        return torch.compiler.is_compiling() and not torch.is_grad_enabled() and self.may_part(x)

    def separate(self, x: Tensor) -> Sequence[Tensor]:
        """Each map's output in memory of its own. Gradients are computed by one product all the same."""
        maps = self.maps()
        adapted = any(one.adapter is not None for one in maps)
        if adapted or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return [one(x) for one in maps]
        weights: list[Tensor] = [one.weight for one in maps]
        if not torch.compiler.is_compiling() and not adjacent(weights):
            lay_together(weights)
        parts = Separate.apply(x.flatten(0, -2), len(maps), *weights, *(one.bias for one in maps))
        return [part.unflatten(0, x.shape[:-1]) for part in parts]


class Separate(torch.autograd.Function):
    """A product with each weight, and one of all for each gradient: x [N, I], `count` weights [O, I] that lie one after
    the other in memory, as many biases [O] or None -> [N, O] each."""

    @staticmethod
    def forward(ctx, x: Tensor, count: int, *maps: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        weights, biases = maps[:count], maps[count:]
        ctx.save_for_backward(x, *weights)
        return tuple(F.linear(x, w, bias) for w, bias in zip(weights, biases, strict=True))  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        for_x, _, *asked = ctx.needs_input_grad
        grad = side_by_side_columns(grads)
        grad_x = times_back(grad, list(weights)) if for_x else None
        for_biases = [part.sum(0) if wanted else None for part, wanted in zip(grads, asked[len(grads) :], strict=True)]
        for_weights: list[Tensor | None] = [None for _ in weights]
        if any(asked[: len(grads)]):
            parts = (grad.t() @ x).split([w.shape[0] for w in weights])
            for_weights = [part if wanted else None for part, wanted in zip(parts, asked, strict=False)]
        return grad_x, None, *for_weights, *for_biases


def side_by_side_columns(parts: Sequence[Tensor]) -> Tensor:
    """Matrices [N, O] as one, [N, Σ O]: without a copy where they are columns of one matrix already."""
    total, first = sum(part.shape[1] for part in parts), parts[0]
    if not torch.compiler.is_compiling():
        place = first.storage_offset()
        for part in parts:
            if part.stride() != (total, 1) or part.storage_offset() != place or part._base is not first._base:
                break
            place += part.shape[1]
        else:
            if first._base is not None:
                return first.as_strided((first.shape[0], total), (total, 1))
    return torch.cat(list(parts), -1)


class Together(torch.autograd.Function):
    """One product with weights that lie one after the other in memory, and one for each gradient: x [N, I], weights
    [O, I] -> [N, Σ O]."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor | None, *weights: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, *weights)
        return times(x, bias, list(weights))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        for_x, for_bias, *for_weights = ctx.needs_input_grad
        sizes = [w.shape[0] for w in weights]
        grad_x = times_back(grad, list(weights)) if for_x else None
        grad_bias = grad.sum(0) if for_bias else None
        if not any(for_weights):
            return grad_x, grad_bias, *(None for _ in weights)
        parts = (grad.t() @ x).split(sizes)
        return grad_x, grad_bias, *(part if asked else None for part, asked in zip(parts, for_weights, strict=True))


def times(x: Tensor, bias: Tensor | None, weights: list[Tensor]) -> Tensor:
    """x [..., I] by weights [O, I] side by side, plus the bias: [..., Σ O]. To the compiler one operator: where the
    weights lie is asked when it runs, and there is nothing to copy together."""
    if torch.compiler.is_compiling():
        return torch.ops.fledge.times(x, bias, weights)
    return F.linear(x, one_matrix(weights), bias)


def times_back(grad: Tensor, weights: list[Tensor]) -> Tensor:
    """The gradient of `times` by its x: grad [N, Σ O] -> [N, I]."""
    if torch.compiler.is_compiling():
        return torch.ops.fledge.times_back(grad, weights)
    return grad @ one_matrix(weights)


@torch.library.custom_op(
    "fledge::times", mutates_args=(), schema="(Tensor x, Tensor? bias, Tensor[] weights) -> Tensor"
)
def _times(x: Tensor, bias: Tensor | None, weights: list[Tensor]) -> Tensor:
    return F.linear(x, one_matrix(weights), bias)


@_times.register_fake
def _times_shape(x: Tensor, bias: Tensor | None, weights: list[Tensor]) -> Tensor:
    return x.new_empty(*x.shape[:-1], sum(w.shape[0] for w in weights))


@torch.library.custom_op("fledge::times_back", mutates_args=(), schema="(Tensor grad, Tensor[] weights) -> Tensor")
def _times_back(grad: Tensor, weights: list[Tensor]) -> Tensor:
    return grad @ one_matrix(weights)


@_times_back.register_fake
def _times_back_shape(grad: Tensor, weights: list[Tensor]) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], weights[0].shape[1])


def adjacent(weights: Sequence[Tensor]) -> bool:
    """Whether matrices [O, I] lie one after the other in one piece of memory."""
    end, memory = weights[0].storage_offset(), weights[0].untyped_storage()._cdata
    for weight in weights:
        if weight.storage_offset() != end or weight.untyped_storage()._cdata != memory or not weight.is_contiguous():
            return False
        end += weight.numel()
    return True


def one_matrix(weights: Sequence[Tensor]) -> Tensor:
    """Adjacent matrices as one, [Σ O, I], without a copy; a copy where something has moved them."""
    if not adjacent(weights):
        return torch.cat(list(weights))
    width = weights[0].shape[1]
    return weights[0].as_strided((sum(w.shape[0] for w in weights), width), (width, 1))


def lay_together(weights: Sequence[Tensor]) -> None:
    """Move parameters [O, I] into one piece of memory, one after the other; objects and values stay the same."""
    with torch.inference_mode(False), torch.no_grad():
        together = torch.cat([w.detach() for w in weights])
        for weight, part in zip(weights, together.split([w.shape[0] for w in weights]), strict=True):
            weight.data = part


def matrix_of(maps: Sequence[nn.Module]) -> Tensor:
    """The weights [O, I] of maps of one input, one below the other: of whole numbers what they stand for."""
    return torch.cat([one.weight if isinstance(one, Linear) else one.dequantized() for one in maps])  # type: ignore


def joined_bias(maps: Sequence[nn.Module]) -> Tensor | None:
    """The biases side by side, zeros for a map without one; None if none has one."""
    if all(m.bias is None for m in maps):
        return None
    rows = [m.weight if isinstance(m, Linear) else m.scale for m in maps]  # one row an output in either
    biases = zip(rows, (m.bias for m in maps), strict=True)
    return torch.cat([like.new_zeros(like.shape[0]) if bias is None else bias for like, bias in biases])  # type: ignore


class PackedLinear(nn.Module):
    """An inference copy: weight [I, O] in one piece, `y = x W + b`. Holds no parameters: write new ones to `places`.

    `parts`: the linears that stand side by side in it (see `Parts`).
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, parts: Parts):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        rows = x.reshape(-1, x.shape[-1])
        y = torch.mm(rows, weight) if bias is None else torch.addmm(bias, rows, weight)
        return y.view(*x.shape[:-1], y.shape[-1])

    def places(self) -> dict[str, Tensor]:
        """Views of the copy by the names of the parameters it was made of: weights [O, I], biases [O]."""
        views, begin = {}, 0
        for name, (size, has_bias) in self.parts.items():
            prefix, part = f"{name}." if name else "", slice(begin, begin + size)
            views[f"{prefix}weight"] = self.weight[:, part].t()
            if has_bias:
                assert self.bias is not None
                views[f"{prefix}bias"] = self.bias[part]
            begin += size
        return views


def pack(module: Linear | Joined | Quantized, compiled: bool = True) -> nn.Module:
    """The packed inference copy of a linear map or a Joined: panels of the compiled kernels where there are any for it,
    and, of quantized maps, `compiled` allows it. A Joined of maps that are not alike stays as it is, and so does what
    has an adapter beside it: it is computed as it was trained."""
    if any(isinstance(part, Adapter) for part in module.modules()):
        for part in module.modules():
            if isinstance(part, Int4Linear):
                part.unpacked = part.steps()
        return module
    if isinstance(module, Int8Linear | Int4Linear):
        return pack_quantized([module], compiled) or module
    if isinstance(module, Joined) and not module.is_plain():
        return pack_quantized(list(module.children()), compiled) or module
    named = dict(module.named_children()) if isinstance(module, Joined) else {"": module}
    maps = [one for one in named.values() if isinstance(one, Linear)]
    parts = {name: (m.weight.shape[0], m.bias is not None) for name, m in zip(named, maps, strict=True)}
    with torch.no_grad():
        weight, bias = torch.cat([m.weight for m in maps]), joined_bias(maps)
        bias = None if bias is None else bias.detach()
        if native(weight):
            return float_linear(weight, bias, parts)
        return PackedLinear(weight.t().contiguous(), bias, parts)


def pack_quantized(maps: Sequence[nn.Module], compiled: bool) -> nn.Module | None:
    """Quantized maps of one input as one; None where they are not alike. The kernels take rows in float32 alone."""
    joined = side_by_side(maps)
    if joined is None or not (compiled and native(joined.scale)):
        return joined
    bias = None if joined.bias is None else joined.bias.detach()
    if isinstance(joined, Int8Linear):
        return int8_linear(joined.weight, joined.scale, bias)
    return int4_linear(nibbles(joined.packed), joined.scale, joined.zero, bias)


def native(weight: Tensor) -> bool:
    """Whether the compiled kernels are there and know this type and device."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and library() is not None
