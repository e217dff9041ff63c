"""One noun a file, one thought a function: sizes have a hard limit."""

from __future__ import annotations

from tests.house.sizes import FILE_LIMIT, FUNCTION_LIMIT, large_files, large_functions
from tests.house.source import modules


def test_no_file_is_over_the_limit():
    assert large_files(over=FILE_LIMIT) == {}


def test_no_function_is_over_the_limit():
    assert large_functions(over=FUNCTION_LIMIT) == {}


def test_no_file_is_a_drawer():
    assert [
        name for name in modules() if name.rpartition(".")[2] in ("utils", "util", "helpers", "misc", "common")
    ] == []


def test_a_planted_long_file_and_function_are_found(tmp_path):
    (tmp_path / "fledge").mkdir()
    body = "def long():\n" + "    x = 1\n" * FUNCTION_LIMIT + "\n" * FILE_LIMIT
    (tmp_path / "fledge" / "a.py").write_text(body)
    assert large_files(tmp_path, FILE_LIMIT) == {"fledge/a.py": FUNCTION_LIMIT + 1 + FILE_LIMIT}
    assert large_functions(tmp_path, FUNCTION_LIMIT) == {"fledge.a.long": FUNCTION_LIMIT + 1}
    assert large_functions(tmp_path, FUNCTION_LIMIT + 1) == {}
