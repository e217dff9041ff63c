"""The wheel stands alone: it holds every file that isn't code, and a fresh environment raises a model with it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fledge

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_every_file_of_the_package_and_the_quickstart(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = (p for p in (ROOT / "fledge").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    wanted = {p.relative_to(ROOT).as_posix() for p in package}
    wanted |= {f"fledge/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "runs" / "quickstart").iterdir()}
    assert wanted - held == set()
    others = {name for name in held if not name.startswith(("fledge/", f"fledge-{fledge.__version__}.dist-info/"))}
    assert others == set()
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_the_unpacked_wheel_runs_where_there_is_no_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from fledge.cli import quickstart as q\nprint(len(list(q.runs_folder().iterdir())), q.runs_folder())"
    # No checkout on the path: -P keeps the working folder off it, and an editable install is out-ranked by PYTHONPATH.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    line = [sys.executable, "-P", "-c", code]
    got = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert got.stdout.strip() == f"10 {tmp_path / 'site' / 'fledge' / 'runs' / 'quickstart'}", got.stderr


@pytest.mark.slow
def test_an_empty_environment_with_the_wheel_pretrains(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    programs = tmp_path / "venv" / "bin"
    constraints = tmp_path / "constraints.txt"
    constraints.write_text((ROOT / "constraints.txt").read_text())
    install = [str(programs / "python"), "-m", "pip", "install", "-q", "-c", str(constraints), str(wheel)]
    subprocess.run(install, check=True, timeout=1200, cwd=tmp_path)
    program = [str(programs / "fledge")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*words: str) -> str:
        line = [*program, *words]
        got = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert got.returncode == 0, got.stderr
        return got.stdout

    assert run("--version") == f"fledge {fledge.__version__}\n"
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    shape = ["model.width=32", "model.layers=1", "model.heads=2", "model.context_tokens=32"]
    steps = ["train.steps=4", "train.rows=2", "data.path=text.txt", "data.tokenizer=bytes"]
    assert '"val_loss"' in run("pretrain", *shape, *steps, "--out", "run", "--json").splitlines()[-1]
    assert run("generate", "run", "--prompt", "The", "--max-tokens", "4", "--temperature", "0").startswith("The")
