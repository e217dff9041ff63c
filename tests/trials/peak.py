"""The peak of a process's memory. Not getrusage: its figure outlives exec, so a child begins at its parent's peak."""

from __future__ import annotations

from pathlib import Path


def peak_bytes() -> int:
    """Most resident bytes of this process since its program began."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    """Let the peak begin anew at what is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
