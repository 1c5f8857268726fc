"""What is published: built twice to the same bytes, and installed as people install it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from daemon import __version__
from tests.support.daemons import RunningDaemon, environment
from tools.build_dists import ROOT, build

EPOCH = 1_700_000_000
WHEEL = f"mlx_sidecar-{__version__}-py3-none-any.whl"
CLIENT_WHEEL = f"mlx_sidecar_client-{__version__}-py3-none-any.whl"
CONSTRAINTS = ROOT / "daemon" / "constraints.txt"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "node_modules", "dist")


@pytest.fixture(name="dists", scope="module")
def _dists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the built files by name."""
    out = tmp_path_factory.mktemp("dists")
    return {path.name: path for path in build(ROOT, out, EPOCH)}


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program outside of the checkout, without the checkout's environment."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], cwd="/", env=clean | environ, capture_output=True, text=True, timeout=900
    )


def checked(*command: str | Path, **environ: str) -> str:
    """Run a program that must succeed, and return what it printed."""
    done = run(*command, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_builds_of_one_tree_are_byte_identical(dists: dict[str, Path], tmp_path: Path) -> None:
    """In another directory, on another day, under another umask."""
    copy = tmp_path / "another place"
    before = os.umask(0o077)
    try:
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        for path in copy.rglob("*"):
            os.utime(path, (time.time(), time.time() - 1e6))
        again = {path.name: path for path in build(copy, tmp_path / "out", EPOCH)}
    finally:
        os.umask(before)
    assert set(again) == set(dists)
    assert len(again) == 4
    for name, path in again.items():
        assert path.read_bytes() == dists[name].read_bytes(), name


def test_dists_are_complete_and_pass_index_checks(dists: dict[str, Path]) -> None:
    """Types, stubs, the embedded model and the licence; and no test in a wheel."""
    checked(sys.executable, "-m", "twine", "check", "--strict", *dists.values())
    with zipfile.ZipFile(dists[WHEEL]) as wheel:
        names = set(wheel.namelist())
    assert {"daemon/v1/ipc_pb2.py", "daemon/embedded/model.safetensors", "daemon/embedded/chat_template.jinja"} <= names
    assert "daemon/constraints.txt" in names, "the doctor compares with it"
    assert {name.partition("/")[0] for name in names} == {"daemon", f"mlx_sidecar-{__version__}.dist-info"}
    with zipfile.ZipFile(dists[CLIENT_WHEEL]) as wheel:
        names = set(wheel.namelist())
    assert {"mlx_sidecar/py.typed", "mlx_sidecar/v1/sidecar_pb2.pyi", "mlx_sidecar/v1/sidecar.proto"} <= names
    assert {name.partition("/")[0] for name in names} == {
        "mlx_sidecar",
        f"mlx_sidecar_client-{__version__}.dist-info",
    }
    with tarfile.open(dists[f"mlx_sidecar-{__version__}.tar.gz"]) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"protos/mlx_sidecar/v1/sidecar.proto", "launchd/README.md", "LICENSE", "tests/conftest.py"} <= inside
    assert {"systemd/mlx-sidecar.service", "tools/constraints.txt", "docs/linux.md"} <= inside


@pytest.mark.slow
def test_client_wheel_installs_without_mlx(dists: dict[str, Path], daemon: RunningDaemon, tmp_path: Path) -> None:
    """And talks to the daemon from there."""
    python = tmp_path / "venv" / "bin" / "python"
    checked(sys.executable, "-m", "venv", tmp_path / "venv")
    checked(python, "-m", "pip", "install", "--quiet", dists[CLIENT_WHEEL])
    installed = {one["name"] for one in json.loads(checked(python, "-m", "pip", "list", "--format=json"))}
    assert "mlx-sidecar-client" in installed
    assert not {name for name in installed if name.startswith(("mlx-lm", "mlx-cpu", "numpy", "transformers"))}
    program = (
        "from mlx_sidecar import Client\nwith Client() as c: print(c.complete('embedded', 'a b', max_tokens=2).usage)"
    )
    assert "completion_tokens=2" in checked(python, "-c", program, MLX_SIDECAR_SOCKET=str(daemon.socket))


@pytest.fixture(name="pipx")
def _pipx(folder: Path) -> Callable[..., str]:
    """Return a function that runs pipx; programs go to `bin` of the folder."""
    checked(sys.executable, "-m", "venv", folder / "venv")
    checked(folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "pipx")
    places = {
        "PIPX_HOME": str(folder / "pipx"),
        "PIPX_BIN_DIR": str(folder / "bin"),
        "PIPX_MAN_DIR": str(folder / "man"),
    }
    return partial(checked, folder / "venv" / "bin" / "pipx", **places)


@pytest.fixture(name="uv")
def _uv(folder: Path) -> Callable[..., str]:
    """Return a function that runs uv; programs of its tools go to `bin` of the folder."""
    checked(sys.executable, "-m", "venv", folder / "venv")
    checked(folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "uv")
    places = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin"), "UV_PYTHON": sys.executable}
    return partial(checked, folder / "venv" / "bin" / "uv", **places)


@pytest.mark.slow
def test_pipx_daemon_from_an_index_passes_its_doctor(
    pipx: Callable[..., str], dists: dict[str, Path], folder: Path
) -> None:
    """The index is a folder with both wheels; with python-daemon beside it, the program names the clash."""
    program, wheel = folder / "bin" / "mlx-sidecar", dists[WHEEL]
    pip_args = f"--pip-args=-c {CONSTRAINTS} --find-links {wheel.parent}"
    pipx("install", "--python", sys.executable, pip_args, f"mlx-sidecar=={__version__}")
    assert __version__ in checked(program, "--version")
    found = json.loads(checked(program, "doctor", "--json", **environment(folder)))
    verdicts = {one["check"]: one["verdict"] for one in found["findings"]}
    assert set(verdicts.values()) <= {"ok", "skipped"}, found
    assert (verdicts["versions"], verdicts["warm equals cold"], verdicts["end"]) == ("ok", "ok", "ok")

    pipx("inject", "mlx-sidecar", "python-daemon")
    clash = run(program, "--version")
    assert clash.returncode == 1
    assert "(python-daemon has one) has overwritten the package `daemon`" in clash.stderr
    pipx("runpip", "mlx-sidecar", "install", "--quiet", "--force-reinstall", "--no-deps", str(wheel))
    assert __version__ in checked(program, "--version"), (
        "installed last, ours wins, and python-daemon is there all the same"
    )


@pytest.mark.slow
def test_pipx_daemon_from_a_checkout_has_its_own_client(pipx: Callable[..., str], folder: Path) -> None:
    """Of the same checkout. The client is removed alone, and the program says so; removed last, it works until then."""
    program = folder / "bin" / "mlx-sidecar"
    pipx("install", "--python", sys.executable, f"--pip-args=-c {CONSTRAINTS}", str(ROOT))
    proto = Path(checked(program, "proto", "--path").strip())
    assert proto.read_bytes() == (ROOT / "protos/mlx_sidecar/v1/sidecar.proto").read_bytes()
    assert folder in proto.parents
    pipx("runpip", "mlx-sidecar", "check")

    pipx("runpip", "mlx-sidecar", "uninstall", "--yes", "mlx-sidecar-client")
    alone = run(program, "--version")
    assert (alone.returncode, alone.stderr.count("\n")) == (1, 1)
    assert "its distribution mlx-sidecar-client is not installed" in alone.stderr
    pipx("runpip", "mlx-sidecar", "install", "--quiet", str(ROOT / "clients/python"))
    assert __version__ in checked(program, "--version")
    pipx("runpip", "mlx-sidecar", "uninstall", "--yes", "mlx-sidecar")
    python = folder / "pipx" / "venvs" / "mlx-sidecar" / "bin" / "python"
    assert __version__ in checked(
        python, "-c", "import mlx_sidecar; print(mlx_sidecar.__version__, mlx_sidecar.Client)"
    )


@pytest.mark.slow
def test_uv_daemon_from_a_checkout_answers(uv: Callable[..., str], folder: Path) -> None:
    """As the README says."""
    uv("tool", "install", "--quiet", "-c", CONSTRAINTS, ROOT)
    daemon = RunningDaemon.start(folder, [str(folder / "bin" / "mlx-sidecar"), "serve"])
    try:
        with daemon.client() as client:
            assert client.load("embedded").outcome == "loaded"
    finally:
        assert daemon.stop() == 0


@pytest.mark.slow
def test_uv_daemon_from_an_index_has_its_extras(uv: Callable[..., str], dists: dict[str, Path], folder: Path) -> None:
    """It answers, and has what `metrics` and `tracing` need."""
    wanted = f"mlx-sidecar[metrics,otel]=={__version__}"
    uv("tool", "install", "--quiet", "--find-links", dists[WHEEL].parent, "-c", CONSTRAINTS, wanted)
    program = folder / "bin" / "mlx-sidecar"
    assert __version__ in checked(program, "--version")
    daemon = RunningDaemon.start(folder, [str(program), "serve"], tracing="true")
    try:
        with daemon.client() as client:
            assert client.load("embedded").outcome == "loaded"
        assert "mlx_sidecar_up 1" in checked(program, "metrics", **environment(folder))
    finally:
        assert daemon.stop() == 0
    uv("tool", "uninstall", "mlx-sidecar")
    assert not program.exists()


@pytest.mark.slow
def test_make_demo_works_in_a_fresh_copy(tmp_path: Path) -> None:
    """It makes an environment of its own, with the client of that copy."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    checked("make", "-C", copy, "demo", f"PYTHON={sys.executable}")
    proto = checked(copy / ".venv" / "bin" / "mlx-sidecar", "proto", "--path").strip()
    assert Path(proto) == copy / "clients/python/mlx_sidecar/v1/sidecar.proto"
