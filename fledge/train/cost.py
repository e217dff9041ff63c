"""What a run cost: seconds, and watt-hours estimated from a stated power per core or GPU. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fledge.train.record import RunRecord, number


@dataclass(frozen=True)
class Rates:
    """Assumed power of one busy core and of one busy GPU, in watts."""

    watts_per_core: float
    watts_per_gpu: float


@dataclass(frozen=True)
class Cost:
    """`seconds` of wall time, `cpu_seconds` over all cores (None: not known), estimated `watt_hours` and how."""

    seconds: float
    cpu_seconds: float | None
    watt_hours: float
    assumption: str


def run_cost(run: RunRecord, rates: Rates) -> Cost:
    """A run's cost. CPU seconds that were not logged are taken as wall seconds times threads of all
    processes: an upper bound."""
    facts = run.start.get("facts")
    facts = facts if isinstance(facts, dict) else {}
    threads = number(facts.get("threads")) or 1.0
    n_processes = number(facts.get("world_size")) or 1.0
    cpu_seconds = run.cpu_seconds
    busy = run.seconds * threads * n_processes if cpu_seconds is None else cpu_seconds
    watt_seconds = busy * rates.watts_per_core
    assumption = f"{rates.watts_per_core:g} W per busy core"
    if str(facts.get("device", "cpu")).startswith("cuda"):
        watt_seconds += run.seconds * n_processes * rates.watts_per_gpu
        assumption += f", {rates.watts_per_gpu:g} W per GPU"
    return Cost(run.seconds, cpu_seconds, watt_seconds / 3600, assumption)
