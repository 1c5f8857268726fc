"""Prometheus metrics from Stats, fetched at each scrape and never stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.shared.ports import refuse_taken
from mlx_sidecar import Client, LatencyHistogram, SidecarError, Stats

_GAUGES = {
    "daemon": ("uptime", "draining"),
    "model_cache": ("cached_models", "max_models", "total_memory_bytes", "budget_bytes"),
    "prefix_cache": (
        *("blocks", "max_blocks", "bytes", "budget_bytes", "buffers", "leases", "total_namespaces"),
        *("total_kept", "kept_bytes", "kept_budget_bytes", "evictable_bytes", "most_bytes"),
        *("disk_bytes", "disk_blocks", "disk_budget_bytes", "tails"),
        *("shared_prefixes", "shared_readers", "shared_bytes"),
    ),
    "engine": (
        *("queued", "prefilling", "decoding", "step_age", "step_time_p50", "step_time_p99"),
        *("token_gap_p50", "token_gap_p99", "batch_size_p50", "batch_size_p99"),
    ),
    "memory": (
        *("active_bytes", "cache_bytes", "peak_bytes", "weights_bytes", "trie_bytes", "live_kv_bytes"),
        *("headroom_bytes", "limit_bytes"),
    ),
    "group": ("limit_bytes", "used_bytes", "decoding", "disk_bytes", "disk_budget_bytes"),
}
_COUNTERS = {
    "model_cache": ("total_hits", "total_misses", "evictions"),
    "prefix_cache": (
        *("lookups", "hits", "tokens_looked_up", "tokens_reused", "inserts", "evictions"),
        *("kept_yielded", "tail_tokens_reused"),
        *("disk_hits", "disk_tokens_reused", "disk_written_bytes", "disk_faults"),
        *("tokens_shared", "shared_copied_tokens"),
    ),
    "engine": ("restarts", "prompt_tokens", "generated_tokens", "rejected", "cancelled"),
    "group": ("restarts", "generated_tokens", "disk_tokens_reused", "disk_faults"),
}
_SECONDS = {"uptime", "step_age", "step_time_p50", "step_time_p99", "token_gap_p50", "token_gap_p99"}


class StatsCollector(Collector):
    """
    Converts Stats into metrics. A daemon that does not answer gives `mlx_sidecar_up 0`, not an error.

    Args:
        ask: Returns Stats, or raises `SidecarError`; called at each scrape.
    """

    def __init__(self, ask: Callable[[], Stats]) -> None:
        self._ask = ask

    def collect(self) -> Iterable[Metric]:
        """Fetch Stats, and return it as metrics."""
        up = GaugeMetricFamily("mlx_sidecar_up", "Whether the daemon answers.")
        try:
            stats = self._ask()
        except SidecarError:
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        one_each = (_misses(stats), _state(stats), _stuck(stats))
        return [up, *_figures(stats), *one_each, *_guesses(stats), *_models(stats), *_latency(stats)]

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that creating a registry does not call the daemon."""
        return []


def text(client: Client) -> str:
    """
    Return the metrics in Prometheus's text format.

    Raises:
        SidecarError: If the daemon does not answer.
    """
    stats = client.stats()
    return generate_latest(_registry(lambda: stats)).decode()


@contextmanager
def serve(client: Client, address: str, port: int) -> Iterator[int]:
    """
    Serve the metrics over HTTP in threads, and yield the port. Port 0 takes a free port.

    Raises:
        OSError: If the port is in use.
    """
    refuse_taken(address, port)
    server, thread = start_http_server(port, address, _registry(client.stats))
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(ask: Callable[[], Stats]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(StatsCollector(ask))
    return registry


def _figures(stats: Stats) -> Iterator[Metric]:
    for kind, table in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for section, names in table.items():
            for name in names:
                shown = f"mlx_sidecar_{section}_{name.removeprefix('total_')}"
                about = f"{section}.{name} of Stats."
                value = float(getattr(getattr(stats, section), name) or 0)
                yield kind(shown + ("_seconds" if name in _SECONDS else ""), about, value=value)


def _misses(stats: Stats) -> Metric:
    about = "Lookups that did not reuse all that could be reused, by reason."
    misses = CounterMetricFamily("mlx_sidecar_prefix_cache_misses", about, labels=["reason"])
    for reason, number in asdict(stats.prefix_cache.misses).items():
        misses.add_metric([reason], number)
    return misses


def _sum(metric: CounterMetricFamily | GaugeMetricFamily, parts: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """
    Give a metric a sample for each tuple of labels: the sum of its parts.

    Several models have one name where one has an adapter, or files that changed. A series that came twice would have
    collectors refuse all of them.
    """
    sums: dict[tuple[str, ...], float] = {}
    for labels, value in parts:
        sums[labels] = sums.get(labels, 0.0) + value
    for labels, value in sums.items():
        metric.add_metric(labels, value)
    return metric


def _guesses(stats: Stats) -> Iterator[Metric]:
    for name, about in (("guessed", "Tokens guessed ahead."), ("accepted", "Tokens guessed ahead that were right.")):
        metric = CounterMetricFamily(f"mlx_sidecar_engine_{name}_tokens", about, labels=["model", "source"])
        yield _sum(metric, (((one.model, one.source), getattr(one, name)) for one in stats.engine.guesses))


def _state(stats: Stats) -> Metric:
    ready = float(stats.engine.state == "ready")
    return GaugeMetricFamily("mlx_sidecar_engine_ready", "Whether the engine makes progress.", value=ready)


def _stuck(stats: Stats) -> Metric:
    about = "Threads of the engine that hang, on disks that are gone for example."
    return GaugeMetricFamily("mlx_sidecar_engine_stuck", about, value=float(len(stats.engine.stuck)))


def _models(stats: Stats) -> Iterator[Metric]:
    nbytes = GaugeMetricFamily("mlx_sidecar_model_bytes", "Weights of each model.", labels=["model", "state"])
    in_use = GaugeMetricFamily("mlx_sidecar_model_in_use", "Requests that use each model.", labels=["model"])
    yield _sum(nbytes, (((one.info.model, one.state), one.info.size_bytes) for one in stats.models))
    yield _sum(in_use, (((one.info.model,), one.in_use) for one in stats.models))


def _latency(stats: Stats) -> Iterator[Metric]:
    for field in fields(stats.latency):
        histogram: LatencyHistogram = getattr(stats.latency, field.name)
        name, about = f"mlx_sidecar_{field.name}_seconds", f"latency.{field.name} of Stats."
        if histogram.counts:  # an older daemon sends none
            yield HistogramMetricFamily(name, about, buckets=_buckets(histogram), sum_value=histogram.sum or 0.0)


def _buckets(histogram: LatencyHistogram) -> list[tuple[str, float]]:
    """Return cumulative counts by upper bound, as Prometheus defines a histogram."""
    total, buckets = 0, []
    for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
