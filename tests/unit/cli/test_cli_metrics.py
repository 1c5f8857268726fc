"""`metrics`: every counter of Stats as Prometheus has it, printed, in a file, or on a loopback port."""

from __future__ import annotations

import errno
import os
import socket
import sys
import urllib.request
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.cli import exit_codes
from daemon.cli.output.exporter import _COUNTERS, _GAUGES, serve
from mlx_sidecar import Client, DaemonNotRunning, GuessStats, Stats
from tests.unit.cli.cli_fakes import FakeClient, client_fixture, run_cli  # noqa: F401
from tests.unit.server.stats_sample import SAMPLE

NOT_FIGURES = {
    "daemon": {"version", "pid", "mlx_version", "mlx_lm_version", "device", "http"},
    "model_cache": {"hit_rate", "oldest_entry_age"},
    "prefix_cache": {"hit_rate", "block_tokens", "checkpoints", "namespaces", "kept", "misses"},
    "engine": {"state", "pid", "stuck", "callers", "guesses"},
    "memory": set[str](),
    "group": {"state", "problem", "ranks", "models", "pid"},
}
"""What Prometheus works out by itself, has as a label, or has no use for."""


def samples(text: str) -> dict[str, float]:
    """Return the value of each metric that has no labels."""
    families = text_string_to_metric_families(text)
    return {one.name: one.value for family in families for one in family.samples if not one.labels}


def test_exported_metrics_have_values_and_kinds(client: FakeClient) -> None:
    client.state = SAMPLE

    text = run_cli(client, "metrics").stdout

    seen = samples(text)
    assert seen["mlx_sidecar_up"] == seen["mlx_sidecar_engine_ready"] == 1
    assert seen["mlx_sidecar_engine_stuck"] == 0
    assert seen["mlx_sidecar_prefix_cache_tokens_reused_total"] == SAMPLE.prefix_cache.tokens_reused
    assert seen["mlx_sidecar_memory_limit_bytes"] == SAMPLE.memory.limit_bytes
    assert seen["mlx_sidecar_daemon_uptime_seconds"] == 7200
    assert seen["mlx_sidecar_first_token_seconds_count"] == 1200
    assert seen["mlx_sidecar_first_token_seconds_sum"] == SAMPLE.latency.first_token.sum
    assert "# TYPE mlx_sidecar_engine_generated_tokens_total counter" in text
    assert "# TYPE mlx_sidecar_first_token_seconds histogram" in text
    assert 'mlx_sidecar_prefix_cache_misses_total{reason="diverged"} 12.0' in text
    assert 'mlx_sidecar_model_bytes{model="<script>alert(1)</script>",state="ready"}' in text


def test_models_of_one_name_are_one_series(client: FakeClient) -> None:
    """Such as one with an adapter and one without: Prometheus, and node_exporter for a whole file, refuse two."""
    guess = GuessStats("m", "ngram", guessed=3, accepted=2, gain=1.5, parked=False)
    model = SAMPLE.models[0]
    engine = replace(SAMPLE.engine, guesses=(guess, guess))
    client.state = replace(SAMPLE, models=(model, model), engine=engine)
    families = text_string_to_metric_families(run_cli(client, "metrics").stdout)
    found = [((one.name, *sorted(one.labels.items())), one.value) for family in families for one in family.samples]
    values = dict(found)
    assert len(values) == len(found)
    assert values["mlx_sidecar_model_in_use", ("model", model.info.model)] == 2 * model.in_use
    assert values["mlx_sidecar_engine_guessed_tokens_total", ("model", "m"), ("source", "ngram")] == 6


def test_every_stats_field_is_exported_or_excluded() -> None:
    for section in fields(Stats):
        if section.name in ("models", "latency", "history"):
            continue
        names = {field.name for field in fields(getattr(SAMPLE, section.name))}
        exported = {*_GAUGES.get(section.name, ()), *_COUNTERS.get(section.name, ())}
        assert names == exported | NOT_FIGURES[section.name], section.name


def test_metrics_file_is_replaced_atomically(client: FakeClient, tmp_path: Path) -> None:
    (tmp_path / "x.prom").write_text("old")

    assert run_cli(client, "metrics", "--file", "x.prom").exit_code == 0
    assert samples((tmp_path / "x.prom").read_text())["mlx_sidecar_up"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.prom"]
    assert run_cli(client, "metrics", "--file", "no/such/x.prom").exit_code == exit_codes.REFUSED


def test_metrics_file_that_fails_leaves_nothing(
    client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer that runs it each minute would fill the directory while the disk is full."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    result = run_cli(client, "metrics", "--file", "x.prom")
    assert (result.exit_code, list(tmp_path.iterdir())) == (exit_codes.REFUSED, [])
    assert "No space left on device" in result.stderr


def test_metrics_scrape_reports_an_absent_daemon(client: FakeClient) -> None:
    def scrape(port: int) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            return samples(answer.read().decode())

    with serve(cast("Client", client), "127.0.0.1", 0) as port:
        there = scrape(port)
        client.error = DaemonNotRunning("gone")
        away = scrape(port)
    assert there["mlx_sidecar_up"] == 1
    assert len(there) > 30
    assert away == {"mlx_sidecar_up": 0}


def test_metrics_without_daemon_is_an_error(client: FakeClient) -> None:
    client.error = DaemonNotRunning("gone")

    assert run_cli(client, "metrics").exit_code == exit_codes.NOT_RUNNING


def test_metrics_without_the_extra_names_it(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "daemon.cli.output.exporter")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    result = run_cli(client, "metrics")

    assert result.exit_code == exit_codes.USAGE
    assert "uv tool install -c daemon/constraints.txt '.[metrics]'" in result.stderr


def test_metrics_port_and_file_exclude_each_other(client: FakeClient) -> None:
    assert run_cli(client, "metrics", "--port", "0", "--file", "x").exit_code == exit_codes.USAGE


def test_metrics_port_in_use_is_named(client: FakeClient) -> None:
    """As `http` does: a sentence, and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run_cli(client, "metrics", "--port", str(port))
    assert result.exit_code == exit_codes.USAGE
    assert f"It cannot listen at 127.0.0.1:{port}: Address already in use; choose another --port" in result.stderr
