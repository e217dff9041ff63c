"""Side-by-side measurement: each peer in its own process, rounds alternating, median and range.

A peer is a function name in the bench file; it sets up, then yields a figure each time it is asked. One thread is
measured by process CPU time, two by wall time.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Peer = Callable[[int], Iterator[float]]


def clock(threads: int) -> float:
    """CPU seconds of this process for one thread, wall seconds for more."""
    return time.process_time() if threads == 1 else time.perf_counter()


def peer_process(peers: dict[str, Peer], name: str, threads: int) -> None:
    """The child: one figure on standard output for each line on standard input."""
    import torch

    torch.set_num_threads(threads)
    measure = peers[name](threads)
    next(measure)  # set up and warm up
    print("ready", flush=True)
    for _ in sys.stdin:
        print(next(measure), flush=True)


def compare(file: str, names: list[str], threads: int, rounds: int = 9) -> dict[str, list[float]]:
    """Figures of each peer, one a round, peers in turn and each round in another order."""
    processes = {}
    for name in names:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        arguments = [sys.executable, file, "--peer", name, "--threads", str(threads)]
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        answer = process.stdout.readline().strip()
        assert answer == "ready", f"{name}: {answer}"
        processes[name] = process
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        order = names[number % len(names) :] + names[: number % len(names)]
        for name in order:
            process = processes[name]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            figures[name].append(float(process.stdout.readline()))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return figures


def summary(figures: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median, range, and the median of each round's ratio to `base`."""
    rows = {}
    for name, values in figures.items():
        ratios = [value / other for value, other in zip(values, figures[base], strict=True)]
        rows[name] = {
            "median": statistics.median(values),
            "low": min(values),
            "high": max(values),
            f"ratio_to_{base}": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
    return rows


def ratio(figures: dict[str, list[float]], ours: str, theirs: str) -> dict[str, Any]:
    """Median and range of the rounds' ratios of two peers, and the processor: a table may grow on several machines."""
    ratios = [a / b for a, b in zip(figures[ours], figures[theirs], strict=True)]
    spread = {"ratio_low": min(ratios), "ratio_high": max(ratios)}
    return {"ratio": statistics.median(ratios), **spread, "processor": processor()}


def keep(name: str, what: dict[str, Any], quiet: bool = False) -> None:
    """Print the result unless `quiet` and keep it with machine, versions and date in bench/results/NAME.json."""
    import torch
    import transformers

    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **what,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if not quiet:
        print(json.dumps(what, indent=1))


def processor() -> str:
    """Its name, and the vectors it computes with: one name may stand for several generations."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        known = {"AVX-512": "avx512f", "AVX2": "avx2"}
        vectors = next((name for name, flag in known.items() if flag in facts["flags"].split()), "")
        return f"{facts['model name']} ({vectors})" if vectors else facts["model name"]
    except (OSError, KeyError):
        return platform.processor()


def run(
    file: str, peers: dict[str, Peer], base: str, name: str, unit: str, pairs: tuple[tuple[str, str], ...] = ()
) -> None:
    """The bench file's main: measure on one and two threads and keep the table, ratios to `base` and of `pairs`."""
    if "--peer" in sys.argv:
        words = sys.argv
        peer_process(peers, words[words.index("--peer") + 1], int(words[words.index("--threads") + 1]))
        return
    tables = {}
    for threads in (1, 2):
        figures = compare(file, list(peers), threads)
        table = summary(figures, base)
        table.update({f"{ours} / {theirs}": ratio(figures, ours, theirs) for ours, theirs in pairs})
        tables[f"{threads} thread{'s' if threads > 1 else ''}"] = table
    clock_words = "CPU time at one thread, wall at two"
    keep(name, {"unit": unit, "clock": clock_words, "rounds": 9, "results": tables})
