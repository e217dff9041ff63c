"""Reading safetensors files from anywhere: the header is checked before a byte of data is used, the data is read (not
mapped), so a file replaced under a running server can't hurt it and a load holds each weight once.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the data buffer (huggingface/safetensors).
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.errors import CheckpointError
from fledge.model.safetensors_header import DTYPES, read_header


class SafetensorsFile:
    """An opened and checked file: `entries` by name, `read(name)`, `metadata`. Close it, or use it in a `with`.

    Raises CheckpointError, naming the file, for every way in which the header can lie.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 (closed by close)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path.name}: can't be opened ({getattr(error, 'strerror', error)}); check the path"
            ) from None
        try:
            self.entries, self.metadata = read_header(self._file, self.path)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> Tensor:
        """The tensor `name`, freshly allocated. Raises CheckpointError if the file has been cut short since."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if tensor.numel():
            view = tensor.view(-1).view(torch.uint8).numpy()
            self._file.seek(entry.start)
            if self._file.readinto(view.data) != entry.end - entry.start:
                raise CheckpointError(f"{self.path.name}: {name}: the file ended early; it changed while being read")
        return tensor

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors in name order, one after the other, beside `path`, fsync and rename. Equal tensors give equal
    bytes; whoever has the file of before open or mapped keeps that one.

    transformers refuses files without the `format` key, so it is always there.
    """
    path = Path(path)
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    # widest types first keeps every tensor aligned, as the reference writer does
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.dtype.itemsize
        entry = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        header[name], at = entry, at + size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(scratch, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                flat = tensors[name].detach().cpu().contiguous().view(-1)
                if flat.numel():
                    file.write(flat.view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
