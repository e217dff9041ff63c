"""A build that is killed at random moments, again and again, ends in the bytes of one that never was."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fledge.data.shards import open_shards
from fledge.errors import DataError
from fledge.lineage import sha256_file, verify
from tests.data.folders import essay

CHILD = """
import sys
from pathlib import Path
from fledge.data import corpus, shards
from fledge.data.build import build
from fledge.data.config import BuildConfig
corpus.GROUP_CHARACTERS = shards.GROUP_CHARACTERS = 20_000
print("begins", flush=True)
build(BuildConfig(Path(sys.argv[2]), (sys.argv[1], sys.argv[3]), "characters", threads=2), json=True)
print("ends", flush=True)
"""


def sources(folder: Path) -> list[str]:
    rows = ["torn" if n == 200 else json.dumps({"text": f"{n} {essay(n, 150)}"}) for n in range(400)]
    (folder / "x.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    (folder / "more").mkdir()
    for n in range(40):
        (folder / "more" / f"{n}.html").write_text(f"<nav>no</nav><p>{essay(1000 + n)}</p>")
    return [str(folder / "x.jsonl.gz"), str(folder / "more")]


def run(places: list[str], out: Path, kill_after: float | None = None) -> tuple[float, bool]:
    """Seconds of the build, and whether it came to its end before it was killed."""
    words = [sys.executable, "-c", CHILD, places[0], str(out), places[1]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        began = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            process.kill()
        rest = process.stdout.read()
    assert kill_after is not None or process.returncode == 0
    return time.monotonic() - began, rest == "ends\n"


def content(out: Path) -> dict[str, str]:
    return {
        p.relative_to(out).as_posix(): sha256_file(p) for p in out.rglob("*") if p.name not in CARDS and p.is_file()
    }


CARDS = ("card.json", "datacard.md")  # they name the folder


def killed_and_mended(tmp_path: Path, kills: int) -> int:
    """Kill so many builds of one folder, then let one end; gives how many were killed before their end."""
    places = sources(tmp_path)
    seconds, _ = run(places, tmp_path / "whole")
    right, digest = content(tmp_path / "whole"), open_shards(tmp_path / "whole").digest
    assert "quarantine.jsonl" in right
    chosen, caught, out = random.Random(7), 0, tmp_path / "out"
    for _ in range(kills):
        _, ended = run(places, out, chosen.uniform(0, seconds))
        caught += not ended
        try:
            assert open_shards(out).digest == digest
        except DataError:
            assert not ended, "an unfinished folder is refused, a finished one is not"
        if ended:
            for path in out.iterdir():  # begin anew: a finished folder would only be looked at
                if path.is_file():
                    path.unlink()
    run(places, out)
    assert content(out) == right and verify(out)["digest"] == verify(tmp_path / "whole")["digest"]
    return caught


def test_a_build_killed_three_times_ends_in_the_same_bytes(tmp_path):
    assert killed_and_mended(tmp_path, 3) >= 1


@pytest.mark.slow
def test_a_build_killed_many_times_ends_in_the_same_bytes(tmp_path):
    assert killed_and_mended(tmp_path, 15) >= 5
