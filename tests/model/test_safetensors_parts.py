"""Any box of any tensor is read by position, and what is written is what the reference library reads."""

from __future__ import annotations

import itertools
import os

import pytest
import safetensors.torch
import torch

from fledge.errors import CheckpointError
from fledge.model import safetensors_file
from fledge.model.safetensors_file import SafetensorsFile, write_safetensors

TENSORS = {
    "cube": torch.arange(4 * 5 * 6).reshape(4, 5, 6),
    "matrix": torch.randn(7, 9, generator=torch.Generator().manual_seed(1)),
    "half": torch.arange(10).to(torch.bfloat16),
    "number": torch.tensor(3.5),
    "none": torch.empty(0, 3),
}


def boxes(shape: torch.Size) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offsets and sizes of every box of a tensor, the empty ones too."""
    spans = [[(a, n) for a in range(m + 1) for n in range(m - a + 1)][:: 1 if m < 6 else 3] for m in shape]
    return [(tuple(a for a, _ in box), tuple(n for _, n in box)) for box in itertools.product(*spans)]


@pytest.mark.parametrize("part_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("name", TENSORS)
def test_every_box_is_the_slice_of_the_whole(tmp_path, monkeypatch, name, part_bytes):
    monkeypatch.setattr(safetensors_file, "PART_BYTES", part_bytes)
    write_safetensors(tmp_path / "a.safetensors", TENSORS)
    tensor = TENSORS[name]
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        for offsets, sizes in boxes(tensor.shape):
            wanted = tensor[tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))]
            assert torch.equal(file.read_part(name, offsets, sizes), wanted), (offsets, sizes)


def test_a_part_of_a_file_cut_since_is_an_error(tmp_path):
    path, rows = tmp_path / "a.safetensors", torch.arange(100_000).reshape(1000, 100)
    write_safetensors(path, {"rows": rows})
    with SafetensorsFile(path) as file:
        os.truncate(path, path.stat().st_size - 40)
        assert torch.equal(file.read_part("rows", (0, 0), (2, 100)), rows[:2])
        with pytest.raises(CheckpointError, match="a.safetensors: rows: the file ended early"):
            file.read_part("rows", (998, 0), (2, 2))


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_a_file_is_whole_however_little_the_system_takes_at_once(tmp_path, monkeypatch, at_once):
    real = os.writev
    monkeypatch.setattr(safetensors_file.os, "writev", lambda handle, views: real(handle, [views[0][:at_once]]))
    monkeypatch.setattr(safetensors_file, "BATCH_TENSORS", 2)
    write_safetensors(tmp_path / "a.safetensors", TENSORS)
    read = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert read.keys() == TENSORS.keys() and all(torch.equal(read[name], TENSORS[name]) for name in read)
