"""The bytes of GGUF tensors: values as float32, float16, bfloat16 or in blocks of 8 bits. `gguf_blocks` reads them.

Source: ggml's `quantize_row_q8_0_ref`; `gguf.quants`, which a test compares bit by bit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fledge.errors import ConfigError

BLOCK = 32  # weights of a Q8_0 block
LARGEST = {
    "F32": torch.finfo(torch.float32).max,
    "F16": torch.finfo(torch.float16).max,
    "BF16": torch.finfo(torch.bfloat16).max,
    "Q8_0": 127 * torch.finfo(torch.float16).max,
}
SMALLEST_STEP = np.float32(1e-37)  # what is below is no step that float16 holds, and has no inverse in float32


def packed(values: Tensor, kind: str, at: str) -> bytes:
    """A tensor's values as GGUF keeps them in `kind`, one of LARGEST. Raises ConfigError for values that are no finite
    numbers there; `at` names the tensor."""
    values = values.detach().to("cpu", torch.float32).contiguous()
    largest = float(values.abs().max())  # NaN where one is
    if not largest <= LARGEST[kind]:
        raise ConfigError(f"{at}: expected weights of at most {LARGEST[kind]:g}, got {largest:g}; choose another type")
    if kind == "BF16":
        return values.to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
    if kind == "Q8_0":
        return q8_0(values.numpy())
    return values.numpy().astype("<f4" if kind == "F32" else "<f2").tobytes()


def q8_0(values: np.ndarray) -> bytes:
    """Blocks of 32: a float16 step and 32 int8, the largest of which is 127; halves are rounded away from zero."""
    blocks = values.reshape(-1, BLOCK)
    step = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    inverse = np.float32(1) / np.where(step < SMALLEST_STEP, np.float32(np.inf), step)
    sizes = np.abs(blocks * inverse)
    whole = np.floor(sizes)
    codes = np.copysign(whole + (sizes - whole >= 0.5), blocks).astype(np.int8)
    return np.concatenate((step.astype("<f2").view(np.uint8), codes.view(np.uint8)), 1).tobytes()
