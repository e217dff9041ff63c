"""The device is a value; a process that a launcher started as one of several is refused, not silently alone."""

from __future__ import annotations

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
    with pytest.raises(ConfigError, match="WORLD_SIZE: expected 1 or none"):
        pick("cpu")


@pytest.mark.parametrize(
    ("words", "message"), [({"name": "tpu"}, "device: expected"), ({"dtype": "int3"}, "dtype: exp")]
)
def test_an_unknown_device_or_dtype_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        pick(**{"name": "cpu", **words})
