"""The device is a value; a process that a launcher started as one of several is refused, not silently alone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from fledge.device import pick
from fledge.errors import ConfigError


@pytest.mark.parametrize("world_size", [None, "", "1"])
def test_one_process_is_rank_0_whatever_rank_says(world_size, monkeypatch):
    """RANK=1 without a launcher used to leave the run log empty."""
    monkeypatch.setenv("RANK", "x")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    device = pick("cpu")
    assert (device.rank, device.world_size) == (0, 1)


@pytest.mark.parametrize("world_size", ["2", "0", "many"])
def test_one_of_several_processes_is_refused(world_size, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ConfigError, match="WORLD_SIZE: expected 1 or none .only training, generate and serve"):
        pick("cpu")


@pytest.mark.parametrize(
    ("words", "message"), [({"name": "tpu"}, "device: expected"), ({"dtype": "int3"}, "dtype: exp")]
)
def test_an_unknown_device_or_dtype_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        pick(**{"name": "cpu", **words})


FAULTS = """
import resource, torch
from fledge import device
if {keep}: device.keep_freed_memory()
def once():
    torch.ones(10_000_000)
for _ in range(12): once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3): once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_used_again_without_new_pages():
    """40 MB have 9,766 pages of 4 KiB, or 20 of 2 MiB."""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (True, False)
    )
    assert kept < 20
    assert given_back > 5 * max(kept, 20)  # the control
