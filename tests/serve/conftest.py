"""A server that several files ask: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.running import KEY, TEXT, RunningServer, running


@pytest.fixture(scope="session")
def scripted() -> Iterator[RunningServer]:
    """It answers TEXT, and asks for KEY, which its own client sends."""
    with running(f"stub:text={TEXT}&poison=%07", f"api_key={KEY}") as started:
        started.client.headers["authorization"] = f"Bearer {KEY}"
        yield started
