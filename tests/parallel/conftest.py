"""A fleet for each test module, and small text that it trains on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.corrupted import story, wordpiece
from tests.parallel.fleet import Fleet


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("text")
    (root / "text").mkdir()
    for number in range(4):
        (root / "text" / f"{number}.txt").write_text(story(number, 60))
    wordpiece().save(root / "tokenizer")
    return {"path": str(root / "text"), "tokenizer": str(root / "tokenizer")}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[Fleet]:
    with Fleet(4, Path(tmp_path_factory.mktemp("fleet"))) as made:
        yield made


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Fleet]:
    """Two processes."""
    with Fleet(2, Path(tmp_path_factory.mktemp("pair"))) as made:
        yield made
