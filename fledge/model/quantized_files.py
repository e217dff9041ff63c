"""Quantized matrices in files and out of them, by the rows of a family's name table.

A matrix is quantized output by output, so that rows that a file stacks, interleaves or pairs are moved as those of
plain weights are; one that a family holds transposed stands by outputs all the same. O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fledge.errors import CheckpointError
from fledge.model.families.family import How, Weight
from fledge.model.names import their_shape, to_ours, to_theirs
from fledge.model.quantization import INT8, Scheme, int4, quantization_json
from fledge.model.safetensors_file import SafetensorsFile
from fledge.nn.linear import Linear
from fledge.nn.quantized import Int4Linear, Int8Linear, Quantized, in_bytes, nibbles

Where = dict[str, SafetensorsFile]
Shapes = dict[str, tuple[int, ...]]
PACKED, SCALE, SHAPE, ZERO = "_packed", "_scale", "_shape", "_zero_point"
HOW: dict[How, How] = {"transposed": "same", "fused_transposed": "fused"}
IN_A_WORD = 8  # numbers of 4 bits in an int32


@dataclass(frozen=True)
class StoredMatrix:
    """A quantized matrix of a file: `name` is what it would be called unquantized, `parts` tells where each part is."""

    name: str
    scheme: Scheme
    parts: dict[str, SafetensorsFile]

    def entry(self, part: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of a part, from the header alone."""
        found = self.parts[part].entries[self.name + part]
        return found.shape, found.dtype

    def read(self, part: str) -> Tensor:
        return self.parts[part].read(self.name + part)


def stored_matrices(where: Where, schemes: tuple[Scheme, ...]) -> dict[str, StoredMatrix]:
    """The quantized matrices of a folder by the name that each would have as plain weights. Raises CheckpointError for
    one that config.json doesn't announce, or that lacks a part."""
    found: dict[str, StoredMatrix] = {}
    if not schemes:
        return found
    for scaled in (name for name in where if name.endswith(f".weight{SCALE}")):
        name = scaled.removesuffix(SCALE)
        parts = {part: where[name + part] for part in ("", PACKED, SCALE, SHAPE, ZERO) if name + part in where}
        if ("" in parts) == (PACKED in parts):
            raise CheckpointError(f"{name}: expected it or its {PACKED[1:]} form beside its scale, got both or none")
        matrix = StoredMatrix(name, INT8, parts)
        found[name] = replace(matrix, scheme=INT8 if "" in parts else int4_scheme(matrix))
        if found[name].scheme not in schemes:
            told = " or ".join(map(str, schemes))
            raise CheckpointError(f"{name}: expected {told} by config.json, got {found[name].scheme}")
    return found


def int4_scheme(matrix: StoredMatrix) -> Scheme:
    """The scheme that the shapes of a matrix's parts say, a symmetric one where it has no zero points."""
    packed, scale = matrix.entry(PACKED)[0], matrix.entry(SCALE)[0]
    if len(packed) != 2 or len(scale) != 2 or 0 in packed + scale or packed[1] * IN_A_WORD % scale[1]:
        raise CheckpointError(
            f"{matrix.name}: expected groups that divide its inputs, got {PACKED[1:]} {list(packed)} with "
            f"scales {list(scale)}"
        )
    return Scheme(4, packed[1] * IN_A_WORD // scale[1], ZERO not in matrix.parts)


def as_plain(where: Where, stored: dict[str, StoredMatrix]) -> Where:
    """The tensors of `where` with each quantized matrix under the one name that it would have as plain weights."""
    parts = {name + part for name, matrix in stored.items() for part in matrix.parts}
    plain = {name: file for name, file in where.items() if name not in parts}
    return plain | {name: matrix.parts[SCALE] for name, matrix in stored.items()}


def by_outputs(weight: Weight) -> Weight:
    """The row of the name table for a matrix that stands output by output in a file."""
    return replace(weight, how=HOW.get(weight.how, weight.how))


def check_stored(matrix: StoredMatrix, weight: Weight, model: nn.Module, shapes: Shapes) -> None:
    """Raise CheckpointError unless the parts have the shapes and types of the linear maps that `weight` names; nothing
    but headers is read."""
    owners = [model.get_submodule(name.rpartition(".")[0]) for name in weight.ours]
    if weight.how in ("stacked", "zeros") or not all(isinstance(owner, Linear) for owner in owners):
        raise CheckpointError(
            f"{matrix.name}: expected plain weights, got {matrix.scheme}; only linear maps are read so"
        )
    outputs, inputs = their_shape(by_outputs(weight), shapes)
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"": ((outputs, inputs), torch.int8)}
    n_scales = 1
    if matrix.scheme.group:
        n_scales = inputs // matrix.scheme.group
        wanted = {
            PACKED: ((outputs, inputs // IN_A_WORD), torch.int32),
            SHAPE: ((2,), matrix.entry(SHAPE)[1] if SHAPE in matrix.parts else torch.int64),
        }
        if not matrix.scheme.symmetric:
            wanted[ZERO] = ((-(-outputs // IN_A_WORD), n_scales), torch.int32)
    scale_type = matrix.entry(SCALE)[1]
    wanted[SCALE] = ((outputs, n_scales), scale_type if scale_type.is_floating_point else torch.float32)
    if missing := [part for part in wanted if part not in matrix.parts]:
        raise CheckpointError(
            f"{matrix.name}{missing[0]}: expected it beside the scale, found none; the file is damaged"
        )
    if strangers := [part for part in matrix.parts if part not in wanted]:
        raise CheckpointError(f"{matrix.name}{strangers[0]}: expected none with {matrix.scheme}; the file is damaged")
    for part, (shape, dtype) in wanted.items():
        got_shape, got_type = matrix.entry(part)
        if got_shape != shape or got_type != dtype:
            raise CheckpointError(
                f"{matrix.name}{part}: expected {dtype} {list(shape)} by config.json, got {got_type} {list(got_shape)}"
            )


def read_maps(matrix: StoredMatrix, weight: Weight, shapes: Shapes) -> dict[str, Quantized]:
    """Our linear maps, without biases, by the names of their weights. Raises CheckpointError for scales that are no
    finite numbers from 0 up, and for a shape that the file contradicts."""
    row = by_outputs(weight)
    scale = matrix.read(SCALE).float()
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise CheckpointError(f"{matrix.name}{SCALE}: expected finite numbers from 0, got others; the file is damaged")
    scales = to_ours(row, scale, shapes)
    if not matrix.scheme.group:
        weights = to_ours(row, matrix.read(""), shapes)
        return {name: Int8Linear(weights[name], scales[name].squeeze(1).contiguous()) for name in weight.ours}
    told, inputs = matrix.read(SHAPE).tolist(), scale.shape[1] * matrix.scheme.group
    if told != [scale.shape[0], inputs]:
        raise CheckpointError(f"{matrix.name}{SHAPE}: expected [{scale.shape[0]}, {inputs}], got {told}")
    packed = to_ours(row, matrix.read(PACKED).view(torch.uint8), shapes)
    zeros = to_ours(row, zero_points(matrix, scale), shapes)
    return {name: Int4Linear(packed[name], scales[name], zeros[name]) for name in weight.ours}


def zero_points(matrix: StoredMatrix, scale: Tensor) -> Tensor:
    """uint8 [O, G] in 0..15: a file packs them along the outputs; in a symmetric one they are all 8."""
    if matrix.scheme.symmetric:
        return torch.full(scale.shape, 8, dtype=torch.uint8)
    words = matrix.read(ZERO).t().contiguous()
    return nibbles(words.view(torch.uint8))[:, : scale.shape[0]].t().contiguous()


def install(model: nn.Module, maps: dict[str, Quantized], device: torch.device) -> None:
    """Put quantized maps in the place of the plain ones whose weights they are named after; biases stay."""
    for name, one in maps.items():
        path = name.removesuffix(".weight")
        owner, _, last = path.rpartition(".")
        bias = model.get_submodule(path).bias
        one = one.to(device)
        if isinstance(bias, Tensor):
            one.bias = nn.Parameter(bias.detach(), requires_grad=False)
        setattr(model.get_submodule(owner), last, one)


def quantized_maps(model: nn.Module) -> dict[str, Quantized]:
    """A model's quantized maps by the names that their weights would have."""
    found = model.named_modules()
    return {f"{name}.weight": module for name, module in found if isinstance(module, Int8Linear | Int4Linear)}


def state_of(name: str, weight: Weight, maps: list[Quantized]) -> dict[str, Tensor]:
    """The parts of one matrix of a file, made of the maps of ours that it holds, which are quantized alike."""
    assert len({scheme_of(one) for one in maps}) == 1, f"{name}: maps that share a matrix differ in bits"
    row = by_outputs(weight)

    def stacked(parts: Iterable[Tensor]) -> Tensor:
        return to_theirs(row, dict(zip(weight.ours, parts, strict=True))).cpu()

    if isinstance(maps[0], Int8Linear):
        scale = stacked(one.scale[:, None] for one in maps)
        return {name: stacked(one.weight for one in maps), f"{name}{SCALE}": scale}  # type: ignore[misc]
    packed = stacked(one.packed for one in maps)  # type: ignore[misc]
    zeros = stacked(one.zero for one in maps).t()  # type: ignore[misc]
    zeros = nn.functional.pad(zeros, (0, -zeros.shape[1] % IN_A_WORD))
    return {
        f"{name}{PACKED}": packed.view(torch.int32),
        f"{name}{SCALE}": stacked(one.scale for one in maps),
        f"{name}{ZERO}": in_bytes(zeros).contiguous().view(torch.int32).t().contiguous(),
        f"{name}{SHAPE}": torch.tensor([packed.shape[0], 2 * packed.shape[1]]),
    }


def scheme_of(one: Quantized) -> Scheme:
    return int4(one.group) if isinstance(one, Int4Linear) else INT8


def quantization_of(model: nn.Module, rows: dict[str, Weight]) -> dict[str, Any] | None:
    """`quantization_config` of a model by its name table's `rows`; None where nothing is quantized."""
    maps = quantized_maps(model)
    if not maps:
        return None
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
    schemes = {
        name.removesuffix(".weight"): scheme_of(maps[row.ours[0]])
        for name, row in rows.items()
        if row.ours and row.ours[0] in maps
    }
    plain = {name.removesuffix(".weight") for name, row in rows.items() if linears.intersection(row.ours)}
    return quantization_json(schemes, plain | (set() if "output.weight" in maps else {"lm_head"}))
