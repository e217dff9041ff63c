"""Config of `fledge convert`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


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
    """Read pytorch_model.bin with torch's restricted unpickler (tensors only). Only for files you trust."""
