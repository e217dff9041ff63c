"""make builds .venv with the Python that is asked for, and keeps the one it has when none is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def python(path: Path, version: str) -> Path:
    """A program that answers like a Python of that version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout whose .venv was made with Python 3.11.7."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python(tmp_path / ".venv" / "bin" / "python", "3.11.7")
    (tmp_path / ".venv" / ".created-3.11.7").touch()
    return tmp_path


def planned(checkout: Path, *words: str) -> str:
    """What `make setup` would do."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "TORCH_SPEC", "MAKEFLAGS")}
    line = ["make", "-n", "setup", *words]
    got = subprocess.run(line, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)
    assert got.returncode == 0, got.stderr
    return got.stdout


def test_another_python_builds_the_environment_anew(checkout):
    """PYTHON= was ignored once .venv was there."""
    other = python(checkout / "python3.12", "3.12.1")
    assert f'"{other}" -m venv --clear .venv' in planned(checkout, f"PYTHON={other}")


def test_the_same_python_and_none_at_all_keep_it(checkout):
    same = python(checkout / "python3.11", "3.11.7")
    for words in ([f"PYTHON={same}"], []):
        plan = planned(checkout, *words)
        assert "venv --clear" not in plan and "pip install" in plan


def test_what_is_installed_is_not_installed_again_until_something_changes(checkout):
    (marker,) = {word for word in planned(checkout).split() if word.startswith(".venv/.setup-") and "*" not in word}
    (checkout / marker).touch()
    assert "pip install" not in planned(checkout)
    assert "pip install" in planned(checkout, "TORCH_SPEC=torch==2.11.0")
    other = python(checkout / "python3.12", "3.12.1")
    assert "pip install" in planned(checkout, f"PYTHON={other}")
