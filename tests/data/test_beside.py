"""A file that can't be written whole leaves the old one, no scratch, and an error that names it."""

from __future__ import annotations

import errno

import pytest

from fledge.data.beside import beside


@pytest.mark.parametrize("name", [None, "other"])
def test_a_full_disk_is_told_with_the_file_that_did_not_fit(tmp_path, name):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match="No space") as raised, beside(tmp_path / "a") as scratch:
        scratch.write_text("half of")
        raise OSError(errno.ENOSPC, "No space left on device", *([name] if name else []))
    assert raised.value.filename == (name or str(tmp_path / "a"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
