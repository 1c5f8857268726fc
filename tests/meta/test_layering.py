"""Layers hold: policy is pure, gRPC stays at the edge, MLX stays in the engine, and files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_sidecar import Client
from tests.running import RunningDaemon

ROOT = Path(__file__).resolve().parents[2]
DAEMON = ROOT / "daemon"
MLX = {"mlx", "mlx_lm", "transformers"}
GRPC = {"grpc", "grpc_status", "grpc_health", "grpc_reflection"}
GRPC_FILES = {"server.py", "service.py", "interceptors.py"}
MLX_FILES = {
    "cache/assembly.py", "cache/built.py", "cache/loader.py", "cache/warmup.py", "cache/weights.py", "kv/layout.py",
    "kv/passes.py",
    "kv/probe.py", "kv/rows.py",
}  # fmt: skip
MLX_FOLDERS = ("engine/", "kv/adapters/")
"""What touches MLX: the engine, the loader with assembly and warm-up, and the adapters with the layout they make up."""

MOST_LINES = 350
"""The aim is 250; a file beyond this is two nouns."""


SOURCES = [
    (path.relative_to(DAEMON).as_posix(), path) for path in sorted(DAEMON.rglob("*.py")) if "_pb2" not in path.name
]
"""Every module of the daemon that was written by hand."""


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(("name", "path"), SOURCES)
def test_only_the_edge_imports_grpc(name: str, path: Path) -> None:
    """The servicer, the app and the interceptor."""
    assert name in GRPC_FILES or not imported(path) & GRPC


@pytest.mark.parametrize(("name", "path"), SOURCES)
def test_only_the_engine_and_the_adapters_import_mlx(name: str, path: Path) -> None:
    """Policy works on opaque payloads."""
    assert name.startswith(MLX_FOLDERS) or name in MLX_FILES or not imported(path) & MLX


@pytest.mark.parametrize(("name", "path"), SOURCES)
def test_files_stay_small(name: str, path: Path) -> None:
    """One noun a file."""
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_the_parent_never_imports_mlx() -> None:
    """Neither directly nor through anything that the daemon's parent process imports to serve."""
    names = "sorted({n.partition('.')[0] for n in sys.modules})"
    code = f"import sys, daemon.app, daemon.server, daemon.cli.serve; print({names})"
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
