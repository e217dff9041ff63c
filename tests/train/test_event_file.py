"""TensorBoard event files, read back by a reader of their own: framing, checksums, protocol buffer, values."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fledge.train.event_file import crc32c, masked, varint, write_events
from fledge.train.record import read_run
from fledge.train.report import ReportConfig, report
from tests.train.logs import write_run


def slow_crc32c(data: bytes) -> int:
    """Bit by bit, by polynomial division (RFC 3720)."""
    crc = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if (crc ^ byte >> bit) & 1 else 0)
    return crc ^ 0xFFFFFFFF


def records(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (n,) = struct.unpack_from("<Q", data, at)
        (head,) = struct.unpack_from("<I", data, at + 8)
        body = data[at + 12 : at + 12 + n]
        (tail,) = struct.unpack_from("<I", data, at + 12 + n)
        for part, found in ((data[at : at + 8], head), (body, tail)):
            crc = slow_crc32c(part)
            if found != ((crc >> 15 | crc << 17) & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF:
                raise ValueError(f"checksum at {at}")
        yield body
        at += 16 + n


def fields(data: bytes) -> Iterator[tuple[int, object]]:
    """(number, value) of a protocol buffer message."""
    at = 0

    def whole() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = whole()
        if key & 7 == 0:
            yield key >> 3, whole()
        elif key & 7 == 2:
            n = whole()
            at += n
            yield key >> 3, data[at - n : at]
        else:
            form, n = {1: ("<d", 8), 5: ("<f", 4)}[key & 7]
            yield key >> 3, struct.unpack_from(form, data, at)[0]
            at += n


def read(path: Path) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """The version, and (step, value) by tag."""
    version, found = "", {}
    for body in records(path.read_bytes()):
        event = dict(fields(body))
        version = event[3].decode() if 3 in event else version  # type: ignore[attr-defined]
        for _, value in fields(event.get(5, b"")):  # type: ignore[arg-type]
            one = dict(fields(value))  # type: ignore[arg-type]
            found.setdefault(one[1].decode(), []).append((event.get(2, 0), one[2]))  # type: ignore[attr-defined]
    return version, found


def test_checksums_are_those_of_the_standard():
    assert crc32c(b"\x00" * 32) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43  # RFC 3720, B.4
    assert crc32c(bytes(range(32))) == 0x46DD794E and crc32c(b"123456789") == 0xE3069283
    assert all(crc32c(text) == slow_crc32c(text) for text in (b"", b"a", b"fledge" * 9))
    assert masked(0) == 0xA282EAD8 and varint(300) == b"\xac\x02" and varint(0) == b"\x00"


def test_every_scalar_of_the_log_is_read_back(tmp_path):
    run = read_run(write_run(tmp_path / "run", 60, objective="mixture"))
    version, found = read(write_events(run, tmp_path / "events"))
    assert version == "brain.Event:2"
    for tag, kind, key in (("train/loss", "step", "loss"), ("train/mfu", "step", "mfu")):
        assert found[tag] == [(step, pytest.approx(value, rel=1e-6)) for step, value in run.series(kind, key)]
    assert [step for step, _ in found["validation/val_loss/books"]] == [20, 40, 60]
    assert found["validation/val_loss"][-1] == (60, pytest.approx(2.0))
    assert found["time/backward"] == [(step, pytest.approx(0.4)) for step in range(1, 61)]


def test_a_byte_that_changes_is_noticed(tmp_path):
    """The control of the reader."""
    path = write_events(read_run(write_run(tmp_path / "run", 5)), tmp_path / "events")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises((ValueError, struct.error, KeyError)):
        read(path)


def test_a_report_writes_a_folder_for_each_run_and_writes_over_its_own(tmp_path):
    runs = [write_run(tmp_path / name, 5) for name in ("a", "b")]
    for _ in range(2):
        result = report(ReportConfig(runs[0], (runs[1],), tensorboard=tmp_path / "tb"), json=True)
        files = sorted(path.relative_to(tmp_path / "tb").parts[0] for path in (tmp_path / "tb").rglob("*tfevents*"))
        assert files == ["a", "b"] and len(result["events"]) == 2


def test_values_that_are_no_numbers_and_odd_events_are_written_as_far_as_they_can_be(tmp_path):
    run = write_run(tmp_path / "run", 5)
    with open(run / "log.jsonl", "a") as log:
        log.write('{"kind": "step", "step": 6, "loss": "nan"}\n{"kind": "step", "step": "inf", "loss": 1}\n')
        log.write('{"kind": "step", "step": 7, "loss": 1e300, "times": 3}\n')
    _, found = read(write_events(read_run(run), tmp_path / "events"))
    assert [str(value) for step, value in found["train/loss"] if step > 5] == ["nan", "inf"]
