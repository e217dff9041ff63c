"""The GGUF container: read as the gguf package writes it, written as it reads; hostile files are refused unread."""

from __future__ import annotations

import resource
import struct
import time

import numpy as np
import pytest

from fledge.errors import TokenizerError
from fledge.text.gguf_file import TYPES, GgufFile
from fledge.text.gguf_write import write_gguf

METADATA = {
    "general.architecture": "llama",
    "a.text": "héllo 🎉",
    "a.flag": True,
    "a.count": 7,
    "a.debt": -7,
    "a.large": 1 << 40,
    "a.ratio": 0.5,
    "a.words": ["one", "", "дер"],
    "a.flags": [True, False],
    "a.scores": np.array([1.5, -2.0], "<f4"),
    "a.types": np.array([1, -3, 6], "<i4"),
}
TENSORS = {
    "blk.0.weight": np.arange(12, dtype="<f4").reshape(3, 4),
    "half": np.arange(5, dtype="<f2"),
    "deep": np.arange(24, dtype="<i8").reshape(2, 3, 4),
}


def same(found, wanted) -> bool:
    if isinstance(wanted, np.ndarray):
        return isinstance(found, np.ndarray) and found.dtype == wanted.dtype and np.array_equal(found, wanted)
    return type(found) is type(wanted) and found == wanted


def test_what_is_written_is_read(tmp_path):
    write_gguf(tmp_path / "x.gguf", METADATA, TENSORS)
    with GgufFile(tmp_path / "x.gguf") as file:
        assert [key for key in METADATA if not same(file.metadata[key], METADATA[key])] == []
        assert {name: tensor.shape for name, tensor in file.tensors.items()} == {n: a.shape for n, a in TENSORS.items()}
        for name, array in TENSORS.items():
            found = file.data(name)
            assert same(found, array) and not found.flags.writeable and file.tensors[name].start % 32 == 0
            del found


def test_the_gguf_package_reads_what_we_write(tmp_path):
    import gguf

    write_gguf(tmp_path / "x.gguf", METADATA, TENSORS)
    theirs = gguf.GGUFReader(tmp_path / "x.gguf")
    for key, value in METADATA.items():
        found = theirs.fields[key].contents()
        wanted = value.tolist() if isinstance(value, np.ndarray) else value
        assert found == wanted, key
    assert {tensor.name: tensor.data.tolist() for tensor in theirs.tensors} == {
        n: a.tolist() for n, a in TENSORS.items()
    }


def test_we_read_what_the_gguf_package_writes(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_string("a.text", "héllo")
    writer.add_float64("a.double", 0.1)
    writer.add_uint64("a.large", 1 << 50)
    writer.add_array("a.words", ["x", "yz"])
    writer.add_array("a.numbers", [1, 2, 3])
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 64)).astype(np.float32)
    writer.add_tensor("plain", weights)
    quantized = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blocks", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(tmp_path / "x.gguf") as file:
        assert (file.metadata["a.text"], file.metadata["a.double"], file.metadata["a.large"]) == ("héllo", 0.1, 1 << 50)
        assert file.metadata["a.words"] == ["x", "yz"] and file.metadata["a.numbers"].tolist() == [1, 2, 3]
        assert np.array_equal(file.data("plain"), weights)
        blocks = file.tensors["blocks"]
        assert (blocks.type, blocks.shape, blocks.n_bytes) == ("Q8_0", (4, 64), 4 * 68)
        assert np.array_equal(file.data("blocks"), quantized)


def test_the_table_of_types_is_ggml_s():
    import gguf

    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: entry for number, entry in TYPES.items() if theirs[number] != entry} == {}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def head(n_tensors: int = 0, n_keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)


def tensor(name: str = "t", sizes: tuple = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


ROOM = bytes(4096)
HOSTILE = {
    "nothing": (b"", "it is empty"),
    "another format": (b"PK\3\4" + ROOM, "expected a GGUF file"),
    "half a header": (head()[:10], "number of tensors"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "a later version": (head(version=9), "expected 2 or 3, got 9"),
    "10^18 tensors": (head(n_tensors=10**18) + ROOM, "number of tensors: expected at most"),
    "10^18 keys": (head(n_keys=10**18) + ROOM, "number of metadata keys: expected at most"),
    "a key of 2^63 bytes": (head(n_keys=1) + struct.pack("<Q", 1 << 63) + ROOM, "metadata key: expected at most"),
    "a text of 2^60 bytes": (head(0, 1) + text("k") + struct.pack("<IQ", 8, 1 << 60) + ROOM, "expected at most"),
    "a list of 2^60 texts": (head(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 1 << 60) + ROOM, "expected at most"),
    "2^60 numbers": (head(0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 1 << 60) + ROOM, "expected at most"),
    "lists of lists": (head(0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1) + ROOM, "an array of numbers"),
    "an unknown type": (head(0, 1) + text("k") + struct.pack("<I", 77) + ROOM, "expected a type of 0..12"),
    "a boolean of 2": (head(0, 1) + text("k") + struct.pack("<IB", 7, 2) + ROOM, "expected 0 or 1"),
    "no UTF-8": (head(0, 1) + struct.pack("<Q", 2) + b"\xff\xfe" + ROOM, "expected UTF-8"),
    "a key twice": (head(0, 2) + (text("k") + struct.pack("<IB", 7, 1)) * 2 + ROOM, "expected once, got twice"),
    "alignment of 3": (
        head(0, 1) + text("general.alignment") + struct.pack("<II", 4, 3) + ROOM,
        "expected a power of two",
    ),
    "a tensor beyond the end": (head(1) + tensor(sizes=(1 << 20,)) + ROOM, "inside the file"),
    "a tensor of 2^200 values": (head(1) + tensor(sizes=(1 << 50,) * 4) + ROOM, "whole F32 blocks"),
    "a tensor of no dimensions": (head(1) + tensor(sizes=()) + ROOM, r"expected 1\.\.4 dimensions"),
    "a tensor of an unknown type": (head(1) + tensor(kind=99) + ROOM, "expected a known ggml type"),
    "a tensor between two places": (head(1) + tensor(offset=7) + ROOM, "at a multiple of 32"),
    "half a block": (head(1) + tensor(sizes=(33,), kind=8) + ROOM, "whole Q8_0 blocks"),
    "a tensor twice": (head(2) + tensor() * 2 + ROOM, "expected once, got twice"),
    "tensors on each other": (head(2) + tensor("a") + tensor("b", offset=64) + ROOM, "expected apart, got overlap"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_before_it_costs_anything(name, tmp_path):
    data, message = HOSTILE[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(TokenizerError, match=message):
        GgufFile(path)
    assert time.process_time() - began < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_the_same_files_without_the_evil_are_read(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(head(2) + tensor("a") + tensor("b", offset=128) + ROOM)
    with GgufFile(path) as file:
        assert file.data("b").tolist() == [0.0] * 32


def test_every_cut_of_a_good_file_is_refused_or_read_whole(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, METADATA, TENSORS)
    whole = path.read_bytes()
    for n in range(0, len(whole) - 32, 7):
        path.write_bytes(whole[:n])
        with pytest.raises(TokenizerError):
            GgufFile(path)
