"""The command line against a running daemon, as a person types it; the README's commands among them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_sidecar import NamespaceStats
from tests.support.daemons import RunningDaemon, environment, run, wait_until
from tools.embedded import corpus

EXAMPLE = next(corpus.held_out(seed=60, tokens_hint=100))


def test_run_reads_its_prompt_from_argument_or_stdin(daemon: RunningDaemon) -> None:
    """`run` prints only the answer on stdout."""
    question = ["--system", EXAMPLE.context, EXAMPLE.question]
    asked = run(daemon, "run", "embedded", *question)
    piped = run(daemon, "run", "embedded", "--system", EXAMPLE.context, stdin=EXAMPLE.question)
    assert asked.returncode == piped.returncode == 0
    assert asked.stdout == piped.stdout
    assert asked.stdout.strip() == EXAMPLE.answer


def test_run_timings_go_to_stderr_and_json_to_stdout(daemon: RunningDaemon) -> None:
    """`run --verbose` prints timings on stderr, and `run --json` prints JSON on stdout."""
    shown = run(daemon, "run", "embedded", "--raw", EXAMPLE.completion(), "--max-tokens", "4", "--verbose", "--json")
    answer = json.loads(shown.stdout)
    assert answer["usage"]["completion_tokens"] == 4
    assert "cached" in shown.stderr


def test_load_ps_stats_and_stop_agree(daemon: RunningDaemon) -> None:
    """A loaded model is listed by all commands and gone after `stop`; a second `stop` is no error."""
    assert run(daemon, "load", "embedded", "--ttl", "10m").returncode == 0
    assert "in 10 minutes" in run(daemon, "ps").stdout
    listed = json.loads(run(daemon, "ps", "--json").stdout)
    stats = json.loads(run(daemon, "stats", "--json").stdout)
    assert "embedded" in json.dumps(listed)
    assert "embedded" in [model["info"]["model"] for model in stats["models"]]
    assert run(daemon, "stop", "embedded").returncode == 0
    again = run(daemon, "stop", "embedded")
    assert again.returncode == 0
    assert "not loaded" in again.stdout + again.stderr
    assert "embedded" not in run(daemon, "ps").stdout


def test_stats_show_latency_namespaces_and_history(daemon: RunningDaemon, folder: Path) -> None:
    """`stats` and its page show latencies, namespaces and the history after a request."""
    with daemon.client() as client:
        before = {one.namespace for one in client.stats().prefix_cache.namespaces}

        def ours() -> list[NamespaceStats]:
            return [one for one in client.stats().prefix_cache.namespaces if one.namespace not in before]

        for _ in range(2):
            assert run(daemon, "run", "embedded", "--raw", EXAMPLE.completion(), "--salt", "figures").returncode == 0
        wait_until(lambda: any(one.hits for one in ours()), "its prefix is reused")
        stats, (namespace,) = client.stats(history=True), ours()
    assert stats.latency.total.count >= stats.latency.first_token.count >= 2
    assert (stats.latency.total.quantile(0.5) or 0) > 0
    assert (namespace.model, namespace.salted) == ("embedded", True)
    assert namespace.tokens_reused % stats.prefix_cache.block_tokens == 0
    assert namespace.branches <= namespace.blocks <= stats.prefix_cache.blocks
    assert stats.history
    written = run(daemon, "stats", "--html", str(folder / "page.html"))
    assert written.returncode == 0, written.stderr
    assert namespace.namespace in (folder / "page.html").read_text()
    assert "mlx_sidecar_up 1.0" in run(daemon, "metrics").stdout


def test_invalidate_previews_before_it_drops(daemon: RunningDaemon) -> None:
    """A dry run drops nothing, and `--yes` drops without a question."""
    run(daemon, "run", "embedded", "--raw", EXAMPLE.completion(), "--salt", "cli")
    dry = run(daemon, "invalidate", "embedded", "--dry-run", "--json")
    done = run(daemon, "invalidate", "embedded", "--yes", "--json")
    assert json.loads(dry.stdout)["blocks"] == json.loads(done.stdout)["blocks"] > 0


def test_config_shows_the_origin_of_each_value(daemon: RunningDaemon) -> None:
    """A value from the environment has the variable as its origin."""
    shown = json.loads(run(daemon, "config", "--json").stdout)
    assert str(daemon.socket) in json.dumps(shown)
    assert "MLX_SIDECAR_SOCKET" in json.dumps(shown)


def test_typed_error_is_one_line_and_exit_status_1(daemon: RunningDaemon) -> None:
    """The line contains the error's reason."""
    failed = run(daemon, "run", "/no/such/model", "hello")
    assert failed.returncode == 1
    assert "MODEL_NOT_FOUND" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "command", [["ps"], ["run", "embedded", "hi"], ["stats"], ["stop", "--all"], ["load", "embedded"]]
)
def test_commands_without_daemon_say_how_to_start_it(folder: Path, command: list[str]) -> None:
    """Without a daemon each command exits with status 3."""
    failed = subprocess.run(
        [sys.executable, "-m", "daemon", *command],
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert failed.returncode == 3
    assert "mlx-sidecar serve" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
