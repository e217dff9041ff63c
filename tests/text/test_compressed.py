"""gzip and Zstandard: what the reference libraries packed comes out; damage is told, and a bomb costs little."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from fledge.errors import DataError
from fledge.text.compressed import Damage, damage_of, unpacked
from fledge.text.config import ReadingConfig
from fledge.text.documents import Tally, read_source

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}
LOREM = b"".join(b"%d bottles, %x of them green\n" % (n, n * n * 7919) for n in range(20_000))
LENIENT = ReadingConfig(max_bad_share=1.0)


def read(data: bytes, ending: str) -> tuple[bytes, Damage | None]:
    stream = unpacked(io.BytesIO(data), ending)
    return stream.read(), damage_of(stream)


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("data", [b"", b"x", LOREM, bytes(3_000_000)], ids=["nothing", "a byte", "text", "zeros"])
def test_what_was_packed_comes_out_again(ending, data):
    assert read(PACK[ending](data), ending) == (data, None)


@pytest.mark.parametrize("ending", PACK)
def test_members_one_after_the_other_are_one_text(ending):
    """As `cat a.gz b.gz`, block-wise writers and web archives make them."""
    parts = [LOREM[start : start + 999] for start in range(0, 60_000, 999)]
    assert read(b"".join(map(PACK[ending], parts)), ending) == (b"".join(parts), None)
    assert read(PACK[ending](LOREM) + bytes(1000), ending) == (LOREM, None), "padding with zeros is no damage"
    assert read(PACK[ending](LOREM) + b"junk!", ending)[0] == LOREM
    assert read(PACK[ending](LOREM) + b"junk!", ending)[1] is not None


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_of_a_file_that_is_cut_off_the_beginning_is_read_and_the_place_told(ending, share):
    packed = PACK[ending](LOREM)
    cut = packed[: int(share * len(packed))]
    found, damage = read(cut, ending)
    assert LOREM.startswith(found) and len(found) >= max(0, share * len(LOREM) - 300_000)
    assert damage is not None and damage.reason.startswith("cut off") and damage.byte == len(cut)


@pytest.mark.parametrize("ending", PACK)
def test_a_changed_byte_is_damage(ending):
    packed = bytearray(PACK[ending](LOREM))
    packed[len(packed) // 2] ^= 0x55
    found, damage = read(bytes(packed), ending)
    assert damage is not None and damage.byte <= len(packed)
    assert found[:1000] == LOREM[:1000]


def lines(folder: Path, name: str, n: int, cut: float = 1.0) -> Path:
    data = "".join(json.dumps({"text": f"text {i}: " + "words " * (i % 50)}) + "\n" for i in range(n)).encode()
    packed = PACK[Path(name).suffix](data)
    (folder / name).write_bytes(packed[: int(cut * len(packed))])
    return folder / name


@pytest.mark.parametrize("ending", PACK)
def test_rows_before_the_damage_stay_and_the_rest_is_one_bad_row(tmp_path, ending):
    whole = [d.text for d in read_source(lines(tmp_path, f"a.jsonl{ending}", 5000), Tally())]
    tally = Tally()
    some = [d.text for d in read_source(lines(tmp_path, f"b.jsonl{ending}", 5000, 0.7), tally)]
    assert len(whole) == 5000 and some == whole[: len(some)] and 2000 < len(some) < 5000
    [row] = tally.bad.first
    assert (row.unit, row.number) == ("byte", (tmp_path / f"b.jsonl{ending}").stat().st_size)
    assert row.reason.startswith("cut off") and row.file.endswith(f"b.jsonl{ending}")


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.zst", "a.html.zst", "a.warc.zst", "a.jsonl.gz"])
def test_a_bomb_is_a_bad_row_and_takes_neither_memory_nor_time(tmp_path, name):
    """256 MiB of one letter in some thousand bytes; a line, a document and a record may have a megabyte."""
    packer = zstandard.ZstdCompressor().compressobj()
    with open(tmp_path / name, "wb") as file:
        if name.endswith(".gz"):
            file.write(gzip.compress(b"a" * (1 << 25)))
        else:
            for _ in range(1 << 2):
                file.write(packer.compress(b"a" * (1 << 26)))
            file.write(packer.flush())
    tally = Tally()
    tracemalloc.start()
    found = list(read_source(tmp_path / name, tally, ReadingConfig(max_document_bytes=1 << 20, max_bad_share=1.0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [] and tally.bad.reasons.total() >= 1
    assert peak < 100 << 20
    with pytest.raises(DataError, match=f"{name}, (line|byte|record) "):
        list(read_source(tmp_path / name, Tally(), ReadingConfig(max_document_bytes=1 << 20)))


def test_a_file_is_named_as_what_it_holds(tmp_path):
    (tmp_path / "a.TXT.GZ").write_bytes(gzip.compress(b"one"))
    (tmp_path / "b.txt").write_bytes(b"two")
    assert [(d.path, d.text) for d in read_source(tmp_path, Tally())] == [("a.TXT", "one"), ("b.txt", "two")]
