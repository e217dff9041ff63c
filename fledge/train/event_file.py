"""A run's log as a TensorBoard event file: scalars only, written whole. Imports no torch.

The format: records of length, its checksum, bytes, their checksum; checksums are CRC-32C (RFC 3720, appendix B.4),
rotated and shifted; the bytes are a protocol buffer `Event`: 1 wall_time double, 2 step int64, 3 file_version text,
5 summary of values, each 1 tag text, 2 simple_value float.
"""

from __future__ import annotations

import math
import os
import struct
from functools import cache
from pathlib import Path

from fledge.lineage import make_folder
from fledge.train.record import Event, RunRecord, number

GROUPS = {"step": "train", "evaluate": "validation", "end": "validation"}
LEFT_OUT = ("step", "steps", "time")
POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected


def write_events(run: RunRecord, folder: Path) -> Path:
    """Write the file and give its path: the same run always has the same, so that writing again takes its place."""
    make_folder(folder)
    began = next((int(number(event.get("time")) or 0) for event in run.events), 0)
    path = folder / f"events.out.tfevents.{began}.fledge"
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "wb") as file:
        file.write(record(event_bytes(float(began), 0, version="brain.Event:2")))
        for event in run.events:
            scalars = scalars_of(event)
            if scalars:
                step = number(event.get("step" if event.get("kind") != "end" else "steps")) or 0.0
                file.write(record(event_bytes(number(event.get("time")) or 0.0, int(step), scalars)))
    os.replace(scratch, path)
    return path


def scalars_of(event: Event) -> dict[str, float]:
    """Tag -> value of an event: `train/loss`, `validation/val_loss/books`, `time/forward` …"""
    group = GROUPS.get(str(event.get("kind")))
    step = number(event.get("steps" if event.get("kind") == "end" else "step"))
    if group is None or step is None or not math.isfinite(step):
        return {}
    wanted = {k: v for k, v in event.items() if group == "train" or k.startswith(("val_", "ema_val", "last_val"))}
    found = {f"{group}/{key}": number(value) for key, value in wanted.items() if key not in LEFT_OUT}
    times = event.get("times") if group == "train" else None
    found |= {f"time/{key}": number(value) for key, value in (times.items() if isinstance(times, dict) else ())}
    return {tag: value for tag, value in found.items() if value is not None}


def event_bytes(wall_time: float, step: int, scalars: dict[str, float] | None = None, version: str = "") -> bytes:
    """One `Event`."""
    made = b"\x09" + struct.pack("<d", wall_time) + b"\x10" + varint(step)
    if version:
        made += b"\x1a" + sized(version.encode())
    if scalars:
        values = b""
        for tag, value in scalars.items():
            as_float = struct.pack("<f", math.copysign(math.inf, value) if abs(value) > 3e38 else value)
            values += b"\x0a" + sized(b"\x0a" + sized(tag.encode()) + b"\x15" + as_float)
        made += b"\x2a" + sized(values)
    return made


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(crc32c(length))) + data + struct.pack("<I", masked(crc32c(data)))


def sized(data: bytes) -> bytes:
    return varint(len(data)) + data


def varint(value: int) -> bytes:
    """A whole number of at least 0, seven bits a byte, the lowest first."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)


def masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    table, crc = byte_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def byte_table() -> tuple[int, ...]:
    made = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        made.append(byte)
    return tuple(made)
