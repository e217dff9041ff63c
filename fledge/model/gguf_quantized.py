"""GGUF's quantized matrices as maps that compute with whole numbers.

Q4_0 is 4 bits in groups of 32, and the same numbers: w = d (q - 8). A block whose d is negative, which a zero point
turns round exactly, becomes w = |d| ((15 - q) - 7). Q8_0 has a scale for each 32 inputs where a map here has one for
each output, so that its numbers are rounded once more: by half a step of 1/127 of a row's largest weight at most.
O outputs, I inputs, G groups.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fledge.errors import CheckpointError
from fledge.model.families.family import Weight
from fledge.model.gguf_blocks import half, nibbles, values
from fledge.model.names import to_ours
from fledge.nn.linear import Linear
from fledge.nn.quantized import MOST, Int4Linear, Int8Linear, Quantized, in_bytes
from fledge.text.gguf_file import GgufFile

Q4_0_BYTES = 18  # of a block of 32
HIGHEST = 15


def quantized_maps_of(
    file: GgufFile, name: str, weight: Weight, model: nn.Module, shapes: dict[str, tuple[int, ...]]
) -> dict[str, Quantized]:
    """Our maps, without biases, by the names of their weights; none where the tensor is of another type or no linear
    map. Raises CheckpointError for scales that are no finite numbers."""
    owners = [model.get_submodule(ours.rpartition(".")[0]) for ours in weight.ours]
    if not all(isinstance(owner, Linear) for owner in owners) or len(file.tensors[name].shape) != 2:
        return {}
    if file.tensors[name].type == "Q4_0":
        packed, scale, zero = (to_ours(weight, part, shapes) for part in q4_0_parts(file, name))
        return {ours: Int4Linear(packed[ours], scale[ours], zero[ours]) for ours in weight.ours}
    if file.tensors[name].type == "Q8_0":
        found = to_ours(weight, torch.from_numpy(values(file, name)), shapes)
        return {ours: by_output(matrix, name) for ours, matrix in found.items()}
    return {}


def q4_0_parts(file: GgufFile, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers two to a byte [O, I / 2], scales float32 [O, G] and zero points uint8 [O, G]."""
    outputs = file.tensors[name].shape[0]
    raw = file.data(name).reshape(-1, Q4_0_BYTES)
    step, codes = half(raw[:, :2]), nibbles(raw[:, 2:])
    turned = step < 0
    codes = np.where(turned, HIGHEST - codes, codes).reshape(outputs, -1)
    zero = np.where(turned, 7, 8).astype(np.uint8).reshape(outputs, -1)
    scale = torch.from_numpy(np.abs(step).reshape(outputs, -1))
    check_finite(scale, name)
    return in_bytes(torch.from_numpy(codes)), scale, torch.from_numpy(zero)


def by_output(matrix: Tensor, name: str) -> Int8Linear:
    """A matrix [O, I] in 8 bits, with a scale for each output."""
    scale = matrix.abs().amax(1) / MOST
    check_finite(scale, name)
    scale = torch.where(scale == 0, 1.0, scale)
    return Int8Linear((matrix / scale[:, None]).round().clamp(-MOST, MOST).to(torch.int8), scale)


def check_finite(scale: Tensor, name: str) -> None:
    if not bool(torch.isfinite(scale).all()):
        raise CheckpointError(f"{name[:60]}: expected finite scales, got others; the file is damaged")
