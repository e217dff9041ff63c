"""A process group that a launcher made, as Ray Train does: a run takes part in it and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist

from fledge.device import Place
from fledge.errors import ConfigError, DataError
from fledge.parallel.config import ParallelConfig
from fledge.parallel.group import Group, joined_to, standing
from fledge.parallel.mesh import new_group
from tests.parallel.fleet import free_port

PATIENCE = timedelta(seconds=5)


@pytest.fixture
def address(monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def made(backend: str = "gloo") -> None:
    dist.init_process_group(backend, init_method="env://", rank=0, world_size=1, timeout=PATIENCE)


def found() -> Group:
    return joined_to(Place(), ParallelConfig(), "cpu", PATIENCE)


def test_what_a_run_made_is_ended_and_what_it_found_is_not(address):
    made()
    before = standing()
    group = found()
    new_group([0], 5)
    assert len(before) == 1 and len(standing()) == 2
    group.leave()
    assert standing() == before
    Group(Place(), group.store).leave()  # the control: a run's own group
    assert not dist.is_initialized()


def test_a_run_does_not_read_the_notes_of_the_one_before(address):
    made()
    first, second = found(), found()
    assert first.tell(DataError("one")) is None and first.store.check(["failure"])
    assert not second.store.check(["failure"])


def test_a_group_that_was_found_stays_while_an_error_is_told(address):
    made()
    group = found()
    group.world_size = 2  # another that never comes
    assert group.failed(DataError("one")) is None
    assert dist.is_initialized()


def test_a_group_that_can_not_carry_a_run_is_refused(address, monkeypatch):
    made()
    with pytest.raises(ConfigError, match="expected those of the process group, 0 of 1, got 1 of 2"):
        joined_to(Place(1, 2, 1), ParallelConfig(), "cpu", PATIENCE)
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
    with pytest.raises(ConfigError, match="got cuda:nccl; .* backend gloo"):
        found()
    with pytest.raises(ConfigError, match="backend cpu:gloo,cuda:nccl"):
        joined_to(Place(), ParallelConfig(), "cuda", PATIENCE)
