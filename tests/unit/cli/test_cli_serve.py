"""`serve` and `config`: flags become the configuration, refusals become exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from daemon.cli import exit_codes
from daemon.cli.commands import serve
from daemon.server.singleton import AlreadyRunning
from daemon.server.socket_path import SocketPathError
from daemon.shared.config import KEYS, Config
from daemon.shared.distributions import mismatch
from tests.unit.cli.cli_fakes import FakeClient, client_fixture, run_cli  # noqa: F401


@pytest.fixture(name="served")
def _served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configs that a fake `daemon.server.app.run` got; an exception in the list is raised by it."""
    served: list[Any] = []

    def run(config: Config) -> int:
        if served:
            raise served.pop()
        served.append(config)
        return 7

    app = ModuleType("daemon.server.app")
    app.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "daemon.server.app", app)
    return served


def test_serve_passes_flags_and_exit_status(client: FakeClient, served: list[Any]) -> None:
    args = ["--max-models", "2", "--no-evict-on-memory-pressure", "--model-roots", "/a", "--model-roots", "/b"]
    result = run_cli(client, "--socket", "/run/s", "serve", *args, "--model-ttl", "10m")

    assert result.exit_code == 7
    (config,) = served
    assert (config.max_models, config.evict_on_memory_pressure, config.model_ttl) == (2, False, 600)
    assert config.model_roots == (Path("/a"), Path("/b"))
    assert config.socket == Path("/run/s")


def test_serve_socket_flag_outranks_the_global_one(client: FakeClient, served: list[Any]) -> None:
    run_cli(client, "--socket", "/outer", "serve", "--socket", "/inner")

    assert served[0].socket == Path("/inner")


def test_serve_has_a_flag_for_every_key(client: FakeClient) -> None:
    text = run_cli(client, "serve", "--help").stdout

    assert all("--" + key.replace("_", "-") in text for key in KEYS)


def test_a_second_daemon_exits_1_and_names_the_first(client: FakeClient, served: list[Any]) -> None:
    served.append(AlreadyRunning(4711))

    result = run_cli(client, "serve")

    assert (result.exit_code, result.stderr) == (exit_codes.REFUSED, "mlx-sidecar: already running (pid 4711)\n")


def test_a_bad_socket_path_or_flag_exits_2(client: FakeClient, served: list[Any]) -> None:
    served.append(SocketPathError("The socket path is wrong; choose another."))
    result = run_cli(client, "serve")
    assert (result.exit_code, result.stderr) == (
        exit_codes.USAGE,
        "mlx-sidecar: The socket path is wrong; choose another.\n",
    )

    result = run_cli(client, "serve", "--max-batch", "0")
    assert (result.exit_code, result.stderr) == (
        exit_codes.USAGE,
        "mlx-sidecar: max_batch from --max-batch is '0', but must be a whole number from 1 to 2147483647.\n",
    )


def test_config_lists_every_key_with_value_and_origin(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLX_SIDECAR_MAX_QUEUE", "5")

    result = run_cli(client, "config", "--max-batch", "3")

    rows = {line.split()[0]: line.split()[1:3] for line in result.stdout.splitlines() if line}
    assert set(KEYS) <= set(rows)
    assert rows["max_batch"] == ["3", "--max-batch"]
    assert rows["max_queue"] == ["5", "MLX_SIDECAR_MAX_QUEUE"]
    assert rows["max_models"] == ["4", "default"]
    assert rows["evict_on_memory_pressure"] == ["true", "default"]
    assert result.stdout.endswith(f"{tmp_path}/.mlx-sidecar/config.toml does not exist.\n")


def test_config_json_has_every_key_and_origin(client: FakeClient) -> None:
    tree = json.loads(run_cli(client, "config", "--json", "--model-roots", "/a").stdout)

    assert list(tree) == list(KEYS)
    assert tree["model_roots"] == {
        "value": ["/a"],
        "origin": "--model-roots",
        "about": KEYS["model_roots"].metadata["help"],
    }


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["socket"], "{home}/.mlx-sidecar/sidecar.sock\n"),
        (["socket", "--socket", "/run/a b.sock"], "/run/a b.sock\n"),
        (["max_batch", "--max-batch", "3"], "3\n"),
        (["drain_timeout"], "30\n"),
        (["tracing"], "false\n"),
        (["log_level"], "info\n"),
        (["log_file"], "\n"),
        (["model_roots"], "\n"),
        (["model_roots", "--model-roots", "/a", "--model-roots", "/b c"], "/a\n/b c\n"),
        (["model_roots", "--model-roots", "/a", "--json"], '[\n  "/a"\n]\n'),
        (["max_models", "--json"], "4\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_config_prints_one_value_alone(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], printed: str
) -> None:
    """`$(mlx-sidecar config socket)` is the path and nothing else, on every system."""
    monkeypatch.setattr("sys.platform", "darwin")
    result = run_cli(client, "config", *arguments)
    assert (result.exit_code, result.stdout) == (exit_codes.OK, printed.format(home=tmp_path))


def test_config_shows_the_environment_socket(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The default socket is in Linux's runtime directory, or where the variable says."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run_cli(client, "config", "socket").stdout == f"{tmp_path}/mlx-sidecar/sidecar.sock\n"
    monkeypatch.setenv("MLX_SIDECAR_SOCKET", "/elsewhere/s.sock")
    assert run_cli(client, "config", "socket").stdout == "/elsewhere/s.sock\n"
    assert run_cli(client, "--socket", "/flag/s.sock", "config", "socket").stdout == "/flag/s.sock\n"


def test_config_lists_keys_for_an_unknown_key(client: FakeClient) -> None:
    """The keys are listed on stderr, and stdout stays empty for scripts."""
    result = run_cli(client, "config", "sockt")
    assert (result.exit_code, result.stdout) == (exit_codes.USAGE, "")
    assert all(key in result.stderr.replace("\n", " ") for key in ("sockt", "'socket'"))


def test_serve_refuses_a_client_of_another_version(
    client: FakeClient, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages are not those that the daemon checks."""
    versions = {"mlx-sidecar": "0.2.0", "mlx-sidecar-client": "0.3.0"}
    monkeypatch.setattr(serve, "mismatch", lambda: mismatch(versions.__getitem__))
    result = run_cli(client, "serve")
    assert (result.exit_code, served) == (exit_codes.REFUSED, [])
    assert "mlx-sidecar 0.2.0 does not go with mlx-sidecar-client 0.3.0; install" in result.stderr
