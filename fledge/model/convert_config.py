"""Config of `fledge convert`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fledge.errors import ConfigError


@dataclass(frozen=True)
class ConvertConfig:
    """Another checkpoint format into a fledge folder (which is a Hugging Face folder)."""

    source: str
    """A llama2.c .bin, a llama.cpp .gguf, a Hugging Face folder, or a folder of pickled weights (see trust_pickle)."""
    target: str
    """The folder to write; it must not exist or be empty."""
    tokenizer: str = ""
    """Tokenizer file where the source has none: llama2.c's tokenizer.bin, or a folder with tokenizer.json."""
    trust_pickle: bool = False
    """Read pytorch_model.bin, or the files of its index, with torch's restricted unpickler (tensors only). Only for
    files you trust."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Type of the weights that are written; empty: the source's, and float32 for llama2.c and GGUF."""
    keep_quantized: bool = False
    """GGUF: leave maps of Q4_0 in 4 bits, exactly as they are, and round those of Q8_0 to 8 bits by output; what has
    another type becomes float32."""
    shard_bytes: int = 5_000_000_000
    """Bytes of weights in one file at most, but for one tensor that is larger."""

    def __post_init__(self) -> None:
        if not 1 <= self.shard_bytes <= 1 << 50:
            raise ConfigError(f"shard_bytes: expected 1 to {1 << 50}, got {self.shard_bytes}")
