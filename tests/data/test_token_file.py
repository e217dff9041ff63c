"""Tokens are read by position: a file that is cut, replaced or written over is an error or changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fledge.data.batches import TextBatches
from fledge.data.shards import Shard
from fledge.data.token_file import TokenFile
from fledge.errors import DataError

N, VOCAB = 40_000, 300
IDS = np.random.default_rng(7).integers(0, VOCAB, N)


@pytest.fixture
def path(tmp_path):
    IDS.astype("<u2").tofile(tmp_path / "train.bin")
    return tmp_path / "train.bin"


def opened(path, dtype: str = "uint16") -> TokenFile:
    return TokenFile(path, dtype, N, VOCAB)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_slices_and_rows_are_those_of_the_array(tmp_path, dtype):
    IDS.astype(np.dtype(dtype).newbyteorder("<")).tofile(tmp_path / "t.bin")
    tokens = opened(tmp_path / "t.bin", dtype)
    for part in (slice(None), slice(3, 9), slice(N - 4, None), slice(5, 5), slice(9, 3), slice(N, N + 5)):
        assert tokens[part].tolist() == IDS[part].tolist()
    starts = [0, N - 11, 17]
    assert tokens.rows(starts, 11).tolist() == [IDS[start : start + 11].tolist() for start in starts]


def test_batches_from_a_file_are_those_from_memory(path):
    starts = np.array([0, 100, 9_000, N])
    in_memory, on_disk = (TextBatches(Shard("train", t, starts), 64, 5, 3) for t in (IDS, opened(path)))
    for index in (0, 7, 500):
        a, b = in_memory.batch(index), on_disk.batch(index)
        assert a.tokens.ids.equal(b.tokens.ids) and a.targets.equal(b.targets) and a.weight.equal(b.weight)


def test_a_read_that_gives_less_than_asked_is_gone_on_with(path, monkeypatch):
    whole, real = opened(path), os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, views, at: real(handle, [views[0][:7]], at))
    assert whole[5:100].tolist() == IDS[5:100].tolist()


def test_a_file_that_is_cut_is_an_error_that_names_it(path):
    tokens = opened(path)
    os.truncate(path, 2 * 1000)
    assert tokens[:1000].tolist() == IDS[:1000].tolist()
    with pytest.raises(DataError, match=r"train\.bin: expected 80000 bytes, got 2000; .*fledge data build"):
        tokens[990:1010]


def test_a_map_of_a_file_that_is_cut_ends_the_process():  # the control: why nothing is mapped
    code = (
        "import numpy, os, tempfile\nfile = tempfile.NamedTemporaryFile()\nfile.write(bytes(80000))\nfile.flush()\n"
        "tokens = numpy.memmap(file.name, '<u2', 'r')\nos.truncate(file.name, 2000)\ntokens[30000:].sum()"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGBUS


def test_a_file_that_takes_its_name_changes_nothing_of_one_that_is_open(path, tmp_path):
    tokens = opened(path)
    np.zeros(N, "<u2").tofile(tmp_path / "new")
    os.replace(tmp_path / "new", path)
    assert tokens[:].tolist() == IDS.tolist()


def test_an_id_beyond_the_vocabulary_is_an_error_that_names_the_file(path):
    tokens = opened(path)
    with open(path, "r+b") as file:
        file.seek(2 * 500)
        file.write(b"\xff\xff")
    assert tokens[:500].tolist() == IDS[:500].tolist()
    with pytest.raises(DataError, match=r"train\.bin: expected ids below 300, got 65535"):
        tokens.rows([0, 450], 100)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"train\.bin: can't be read \(No such file"):
        opened(tmp_path / "train.bin")


def test_the_file_is_closed_with_its_last_reader(path):
    tokens = opened(path)
    handle = tokens.handle
    del tokens
    with pytest.raises(OSError):
        os.fstat(handle)
