"""The end of a test run is counted: passed, failed, skipped, and the data that were not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

EXAMPLE = """
import pytest

def test_passes(): pass
def test_fails(): assert False
@pytest.fixture
def broken(): raise ValueError
def test_errs(broken): pass
def test_wants_data(data_folder): pass
def test_wants_a_set(data_file): data_file("nowhere.txt")
"""

ANOTHER = """
import pytest

def test_wants_a_browser(): pytest.skip("no Chromium")
@pytest.mark.skip
def test_never_runs(): pass
"""


def run(folder: Path, **env: str) -> str:
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_example.py").write_text(EXAMPLE)
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    got = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ, **env})
    return got.stdout.splitlines()[-1]


def test_the_last_line_counts_everything_and_names_missing_data(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    tests = tmp_path / "tests"
    tests.mkdir()
    line = run(tests, FLEDGE_DATA=str(data), FLEDGE_TEST_ALL="")
    assert line == "2 passed, 2 failed, 1 skipped; missing data in 1: nowhere.txt"
    (tests / "test_another.py").write_text(ANOTHER)
    line = run(tests, FLEDGE_DATA=str(data), FLEDGE_TEST_ALL="")
    assert line == (
        "2 passed, 2 failed, 3 skipped; missing data in 1: nowhere.txt; no Chromium in 1; unconditional skip in 1"
    )


def test_where_everything_must_run_missing_data_fail(tmp_path):
    line = run(tmp_path, FLEDGE_DATA=str(tmp_path / "absent"), FLEDGE_TEST_ALL="1")
    assert line == "1 passed, 4 failed, 0 skipped"
