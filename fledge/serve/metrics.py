"""Prometheus figures in a registry of their own: vLLM's names and units under our prefix, labels from closed sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
WHOLE_BUCKETS = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)


class Metrics:
    """Every figure of one server. `engine` gives the engine's own counters at the time of a scrape."""

    def __init__(self, engine: Callable[[], Mapping[str, float]], engine_process: Callable[[], int | None]):
        disable_created_metrics()  # a second series for each, which nobody asks for
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"fledge_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"fledge_{name}", text, registry=registry, buckets=buckets)

        self.http_requests = counter(
            "http_requests", "Answered HTTP requests; unknown paths are 'other'.", ("route", "method", "status")
        )
        self.succeeded = counter("request_success", "Finished choices by why they ended.", ("finished_reason",))
        self.failed = counter("request_failure", "Generation requests that failed, by error code.", ("code",))
        self.disconnected = counter("request_disconnects", "Requests whose caller left before the end.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of accepted requests.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated, stop tokens included.")
        self.unknown_fields = counter("unknown_fields", "Request fields that were ignored because they are not known.")
        self.first_token = histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token.", FIRST_TOKEN_BUCKETS
        )
        self.between_tokens = histogram(
            "inter_token_latency_seconds", "Between two steps of one choice.", TOKEN_BUCKETS
        )
        self.whole = histogram(
            "e2e_request_latency_seconds", "From a generation request's arrival to its end.", WHOLE_BUCKETS
        )
        self.draining = Gauge("fledge_draining", "1 while the server finishes its last requests.", registry=registry)
        self.ready = Gauge("fledge_ready", "1 while the engine takes requests.", registry=registry)
        registry.register(EngineCollector(engine))
        ProcessCollector(namespace="fledge", registry=registry)
        ProcessCollector(
            namespace="fledge_engine", pid=lambda: engine_process() or "no-such-process", registry=registry
        )

    def count_answer(self, route: str, method: str, status: int) -> None:
        self.http_requests.labels(route, method if method in METHODS else "other", str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)


RENAMED = {
    "running": "num_requests_running",
    "waiting": "num_requests_waiting",
    "preemptions_total": "num_preemptions",
    "draft_tokens_total": "spec_decode_num_draft_tokens",
    "accepted_tokens_total": "spec_decode_num_accepted_tokens",
    "prefix_query_tokens_total": "prefix_cache_queries",
    "prefix_hit_tokens_total": "prefix_cache_hits",
}
BLOCKS = ("blocks_used", "blocks_cached", "blocks_free")
CONSTANTS = frozenset({"slots_total"})


class EngineCollector:
    """The engine's counters at the time of a scrape, under vLLM's names where it has one."""

    def __init__(self, counters: Callable[[], Mapping[str, float]]):
        self.counters = counters

    def collect(self) -> Iterable[Metric]:
        figures = dict(self.counters())
        if n_blocks := sum(figures.get(name, 0) for name in BLOCKS):
            figures["kv_cache_usage_perc"] = figures["blocks_used"] / n_blocks
        for name in RENAMED:
            figures.setdefault(name, 0)
        for name, value in sorted(figures.items()):
            text = f"The engine's {name.replace('_', ' ')}."
            total = name.endswith("_total") and name not in CONSTANTS
            if name in RENAMED or name == "kv_cache_usage_perc":
                full = f"fledge_{RENAMED.get(name, name)}"
            else:
                full = f"fledge_engine_{name.removeprefix('engine_').removesuffix('_total')}"
            yield (CounterMetricFamily if total else GaugeMetricFamily)(full, text, value=value)
