"""Trial 37: a model file that is written, replaced or cut while somebody has it: no zeros, no signal, old or new."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import fledge
from fledge.batch import OneDocument, one_document
from fledge.errors import CheckpointError, TokenizerError
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import INDEX, WEIGHTS, load_model, save_model
from fledge.model.init import initialise
from fledge.model.transformer import Transformer, build
from fledge.text.gguf_file import GgufFile
from fledge.text.gguf_write import write_gguf
from fledge.text.tokenizer import byte_level
from tests.serve.running import RunningServer, running, wait_until

SHAPE = ShapeConfig("llama", width=32, layers=2, heads=2, context_tokens=64, vocab_size=264)


def model_of(seed: int) -> Transformer:
    return initialise(build(family("llama").build(SHAPE), "cpu"), seed)


def folder_of(path: Path, seed: int = 1, shard_bytes: int = 1 << 30) -> Path:
    save_model(model_of(seed), path, byte_level(), shard_bytes=shard_bytes)
    return path


@torch.no_grad()
def logits(model: Transformer) -> torch.Tensor:
    return model(one_document(torch.arange(20)[None]), OneDocument())


@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
def test_37_loaded_and_saved_to_the_same_place_is_the_same_to_the_bit(shard_bytes, tmp_path):
    folder = folder_of(tmp_path / "m", shard_bytes=shard_bytes)
    before = logits(load_model(folder))
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    save_model(load_model(folder), folder, byte_level(), shard_bytes=shard_bytes)
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == files
    assert torch.equal(logits(load_model(folder)), before) and not list(folder.glob(".*"))


@pytest.mark.parametrize(("old", "new"), [(20_000, 1 << 30), (1 << 30, 20_000), (20_000, 40_000)])
def test_37_another_model_over_it_leaves_nothing_of_the_first(old, new, tmp_path):
    folder = folder_of(tmp_path / "m", 1, old)
    first = logits(load_model(folder))
    save_model(model_of(2), folder, byte_level(), shard_bytes=new)
    expected = logits(load_model(folder_of(tmp_path / "fresh", 2, new)))
    assert torch.equal(logits(load_model(folder)), expected) and not torch.equal(first, expected)
    fresh = {path.name for path in (tmp_path / "fresh").iterdir()}
    assert {path.name for path in folder.iterdir()} == fresh and (INDEX in fresh) == (WEIGHTS not in fresh)


READER = """
import sys, numpy
from pathlib import Path
mapped = numpy.memmap(sys.argv[1], numpy.uint8, "r")
print("open", flush=True)
sys.stdin.readline()
print(int(mapped[4096:].sum(dtype="int64")), flush=True)
"""


def sum_read_after(path: Path, change) -> tuple[int, str]:
    """Exit code and answer of a process that has mapped `path` when `change` is done to it."""
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None and child.stdout.readline() == "open\n"
        change()
        answer, _ = child.communicate("go\n", timeout=30)
    return child.returncode, answer.strip()


def test_37_whoever_has_the_old_file_mapped_keeps_it(tmp_path):
    path = folder_of(tmp_path / "m") / WEIGHTS
    expected = str(sum(path.read_bytes()[4096:]))
    assert sum_read_after(path, lambda: folder_of(tmp_path / "m", 2)) == (0, expected)
    assert str(sum(path.read_bytes()[4096:])) != expected
    code, _ = sum_read_after(path, lambda: os.truncate(path, 100))  # the control: what writing in place would do
    assert code == -signal.SIGBUS


def spoiled(path: Path, how: str) -> None:
    if how == "cut":
        os.truncate(path, 100)
    elif how == "zeros":
        path.write_bytes(bytes(path.stat().st_size))
    elif how == "gone":
        path.unlink()
    else:
        other = folder_of(path.parent.parent / "other", 7)
        os.replace(other / WEIGHTS, path)


@pytest.mark.parametrize("how", ["cut", "zeros", "gone", "renamed over"])
def test_37_a_loaded_model_does_not_notice_what_happens_to_its_file(how, tmp_path):
    folder = folder_of(tmp_path / "m")
    model = fledge.load(folder)
    before = model.generate("Hello", max_tokens=12, temperature=0)
    spoiled(folder / WEIGHTS, how)
    assert model.generate("Hello", max_tokens=12, temperature=0) == before
    if how == "renamed over":  # the control: the new file is another model
        assert fledge.load(folder).generate("Hello", max_tokens=12, temperature=0) != before
    elif how != "zeros":
        with pytest.raises(CheckpointError):
            fledge.load(folder)


def test_37_a_gguf_file_cut_after_opening_is_an_error(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {"general.architecture": "llama"}, {"a": np.ones((64, 512), "<f4")})
    with GgufFile(path) as file:
        assert file.data("a").sum() == 64 * 512  # the control
        os.truncate(path, 8192)
        with pytest.raises(TokenizerError, match="ended early"):
            file.data("a")


def answers(server: RunningServer) -> list[str]:
    prompts = ("Hello", "def ", "x" * 20)
    return [server.complete(text, max_tokens=12, temperature=0).json()["choices"][0]["text"] for text in prompts]


def kill_engine(server: RunningServer) -> None:
    engine = server.engine()
    engine.kill()
    wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 5)


def test_37_a_server_keeps_its_weights_whatever_happens_to_the_file(tmp_path):
    folder = folder_of(tmp_path / "m")
    shutil.copytree(folder, tmp_path / "kept")
    with running(str(folder), "engine.n_slots=2") as server:
        before = answers(server)
        assert len(set(before)) > 1
        for how in ("renamed over", "zeros", "cut", "gone"):
            spoiled(folder / WEIGHTS, how)
            assert answers(server) == before, how
            shutil.copy(tmp_path / "kept" / WEIGHTS, folder)
    other = fledge.load(folder_of(tmp_path / "other", 7))  # the control: what was renamed over is another model
    assert other.generate("Hello", max_tokens=12, temperature=0) != before[0]


@pytest.mark.slow
def test_37_an_engine_that_starts_again_finds_another_model_and_does_not_serve_it(tmp_path):
    folder, other = folder_of(tmp_path / "m"), folder_of(tmp_path / "aside", 2)
    shutil.copytree(folder, tmp_path / "kept")  # with the times of the files
    with running(str(folder), "engine.n_slots=2") as server:
        before = answers(server)
        kill_engine(server)  # the control: the same files come back
        server.wait_ready()
        assert answers(server) == before
        shutil.copy(other / WEIGHTS, folder)
        kill_engine(server)
        wait_until(lambda: "expected the files of" in server.errors(), 60)
        assert server.client.get("/ready").status_code == 503
        shutil.copy2(tmp_path / "kept" / WEIGHTS, folder)
        server.wait_ready()
        assert answers(server) == before
    shutil.copy(other / WEIGHTS, folder)
    with running(str(folder), "engine.n_slots=2") as server:  # the swap: a new start
        assert answers(server) != before
