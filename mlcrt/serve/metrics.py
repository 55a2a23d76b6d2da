"""Figures for Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_COUNTERS = {
    "steps": "Steps of the engine.",
    "tokens_generated": "Tokens of answers.",
    "prompt_tokens": "Tokens of prompts.",
    "prefix_hits": "Requests that found the beginning of their prompt in the cache.",
    "prefix_hit_tokens": "Prompt tokens that were not computed again.",
    "refused": "Requests that were not taken up.",
}
_GAUGES = {
    "running": "Requests in the batch.",
    "prefilling": "Requests whose prompt is being read.",
    "queued": "Requests that wait.",
    "slots": "Requests that can run at once.",
    "kv_tokens": "Tokens in the KV cache for running requests.",
    "kv_cached_tokens": "Tokens in the KV cache kept for reuse.",
    "kv_capacity_tokens": "Tokens that the KV cache holds.",
}


class Metrics:
    """Counted here: HTTP requests and their times. Read off `stats` (the scheduler's) when asked: everything else."""

    def __init__(self, stats: Callable[[], dict[str, Any]]):
        self.registry = CollectorRegistry()
        options = {"registry": self.registry}
        self._requests = Counter("mlcrt_http_requests", "Requests.", ["path", "status"], **options)
        self._seconds = Histogram(
            "mlcrt_http_request_seconds", "Whole requests.", ["path"], buckets=_SECONDS, **options
        )
        self._first = Histogram(
            "mlcrt_time_to_first_token_seconds", "From request to first token.", buckets=_SECONDS, **options
        )
        self._token = Histogram(
            "mlcrt_time_per_token_seconds", "Between two tokens of an answer.", buckets=_TOKEN_SECONDS, **options
        )
        ProcessCollector(namespace="mlcrt", registry=self.registry)
        self.registry.register(_Scheduler(stats))

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request is over. `path` is the route's, so that there are few of them."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def next_token(self, seconds: float) -> None:
        self._token.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Scheduler:
    """A collector: asks the scheduler when Prometheus asks."""

    def __init__(self, stats: Callable[[], dict[str, Any]]):
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"mlcrt_{name}", text, value=stats[name])
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"mlcrt_{name}", text, value=stats[name])
        ended = CounterMetricFamily("mlcrt_finished", "Answers by what ended them.", labels=["reason"])
        for reason, count in stats["finished"].items():
            ended.add_metric([reason], count)
        yield ended
