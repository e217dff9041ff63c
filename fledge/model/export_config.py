"""Config of `fledge export`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fledge.errors import ConfigError

GgufType = Literal["f32", "f16", "bf16", "q8_0"]


@dataclass(frozen=True)
class ExportConfig:
    """A model folder as a GGUF file, which llama.cpp opens."""

    model: str
    """Model folder or run folder; a folder of adapters or of quantized weights is refused."""
    out: Path
    """The file to write, ending in .gguf; it must not exist."""
    type: GgufType = "f16"
    """Type of the matrices: f32, f16, bf16, or q8_0 (8 bits in blocks of 32; a matrix whose rows are no multiple of 32
    stays f16). Norms, biases and positions are f32 always."""
    tokenizer: str = ""
    """Tokenizer where the folder has none: a folder or file; empty: the model's own."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".gguf":
            raise ConfigError(f"out: expected a file ending in .gguf, got {self.out}")
