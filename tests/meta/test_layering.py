"""Layers hold: a rule for each folder, the same for every file in it; and files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_sidecar import Client
from tests.support.daemons import RunningDaemon

ROOT = Path(__file__).resolve().parents[2]
DAEMON = ROOT / "daemon"
TESTS = ROOT / "tests"
MLX = {"mlx", "mlx_lm", "transformers"}
GRPC = {"grpc", "grpc_status", "grpc_health", "grpc_reflection"}

MOST_LINES = 350
"""A longer file has two subjects."""

SOURCES = {
    path.relative_to(DAEMON).as_posix(): path for path in sorted(DAEMON.rglob("*.py")) if "_pb2" not in path.name
}
"""Every module of the daemon that was written by hand."""


def imported(path: Path) -> set[str]:
    """Return the full names of all modules that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(path: Path) -> set[str]:
    """Return the top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imported(path)}


def within(*folders: str) -> list[str]:
    """Return the modules below some folders."""
    return [name for name in SOURCES if name.startswith(folders)]


def test_only_the_server_imports_grpc() -> None:
    """The engine speaks frames, policy speaks neither, and the command line uses the public client."""
    assert [name for name in SOURCES if packages(SOURCES[name]) & GRPC and not name.startswith("server/")] == []


def test_only_array_modules_import_mlx() -> None:
    """By the engine, and by the folders `mlx` of the model cache and of the prefix cache."""
    allowed = ("engine/", "cache/mlx/", "kv/mlx/")
    assert [name for name in SOURCES if packages(SOURCES[name]) & MLX and not name.startswith(allowed)] == []


def test_scheduling_imports_no_other_part() -> None:
    """It knows neither arrays nor messages, and of this project only itself."""
    for name in within("engine/scheduling/"):
        known = {module for module in imported(SOURCES[name]) if module.startswith(("daemon", "mlx_sidecar"))}
        assert all(module.startswith("daemon.engine.scheduling") for module in known), name
        assert not packages(SOURCES[name]) & (MLX | GRPC | {"google"}), name


def test_the_engine_computes_on_types_of_its_own() -> None:
    """Requests become dataclasses once, in `calls/` and `prompt/`; events become messages once, in `outbox.py`."""
    folders = ("engine/scheduling/", "engine/execution/", "engine/output/", "engine/structured_output/")
    assert not [name for name in within(*folders) if "mlx_sidecar" in packages(SOURCES[name])]


def test_shared_imports_neither_process() -> None:
    """Nor the policy of the caches."""
    others = ("daemon.server", "daemon.engine", "daemon.cache", "daemon.kv", "daemon.cli")
    assert not [name for name in within("shared/") if any(one.startswith(others) for one in imported(SOURCES[name]))]


def test_server_and_engine_do_not_import_each_other() -> None:
    """They are two processes."""
    assert not [
        name for name in within("server/") if any(one.startswith("daemon.engine") for one in imported(SOURCES[name]))
    ]
    assert not [
        name for name in within("engine/") if any(one.startswith("daemon.server") for one in imported(SOURCES[name]))
    ]


def test_http_is_a_client_of_the_daemon() -> None:
    """It imports the client's public names, what is shared, and itself; its commands alone import it."""
    for name in within("http/"):
        known = {module for module in imported(SOURCES[name]) if module.startswith("daemon")}
        assert all(module.startswith(("daemon.http", "daemon.shared")) for module in known), name
        assert not [module for module in imported(SOURCES[name]) if module.startswith("mlx_sidecar._")], name
        assert "mlx_sidecar.v1" not in SOURCES[name].read_text(), name
    others = [name for name in SOURCES if not name.startswith("http/")]
    importers = {name for name in others if any(one.startswith("daemon.http") for one in imported(SOURCES[name]))}
    assert importers == {"cli/commands/http.py", "cli/exit_codes.py", "cli/output/door_health.py"}


@pytest.mark.parametrize(
    "module", ["daemon.server.app, daemon.server.grpc_server", "daemon.engine.engine", "daemon.cli"]
)
def test_only_the_door_imports_http_libraries(module: str) -> None:
    """The parent, the engine and the command line do without."""
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print([*sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"starlette", "uvicorn"} & set(ast.literal_eval(shown.stdout))


def test_caches_do_not_import_the_engine() -> None:
    """It uses them; the prefix cache does not know the model cache either."""
    assert not [
        name
        for name in within("cache/", "kv/")
        if any(one.startswith("daemon.engine") for one in imported(SOURCES[name]))
    ]
    assert not [
        name for name in within("kv/") if any(one.startswith("daemon.cache") for one in imported(SOURCES[name]))
    ]


def test_tests_are_no_helpers_of_other_tests() -> None:
    """What several of them need has a module of its own, which says what it is."""
    asked = {path.relative_to(TESTS).as_posix(): imported(path) for path in sorted(TESTS.rglob("*.py"))}
    assert [name for name, names in asked.items() if any(".test_" in one for one in names)] == []


@pytest.mark.parametrize("name", SOURCES)
def test_files_stay_small(name: str) -> None:
    """One subject a file."""
    assert len(SOURCES[name].read_text().splitlines()) <= MOST_LINES


def test_the_parent_never_imports_mlx() -> None:
    """Neither directly nor through anything that the daemon's parent process imports to serve."""
    names = "sorted({n.partition('.')[0] for n in sys.modules})"
    code = f"import sys, daemon.server.app, daemon.server.grpc_server, daemon.cli.commands.serve; print({names})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(shown.stdout))
    assert "grpc" in loaded
    assert not loaded & (MLX | {"numpy", "tokenizers", "huggingface_hub"})
    assert "opentelemetry" not in loaded, "only a daemon whose tracing is on imports it"


def test_a_serving_parent_has_no_mlx_mapped(daemon: RunningDaemon, client: Client) -> None:
    """Seen from outside, after it has served: no file of mlx is in its memory. The engine's memory has some."""
    client.load("embedded")
    maps = Path(f"/proc/{daemon.process.pid}/maps")
    if not maps.exists():
        pytest.skip("there is no /proc on this system")
    assert "/mlx/" not in maps.read_text()
    assert "/mlx/" in Path(f"/proc/{daemon.engine_pid()}/maps").read_text()


def test_the_engine_never_imports_grpc() -> None:
    """It speaks frames; gRPC's threads would only get in the way."""
    code = "import sys, daemon.engine.engine; print('grpc' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
