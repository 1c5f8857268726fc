"""Description of the machine, libraries and commit of a run, without a name of the machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OPENBLAS = (
    "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0",
)
"""Debian's paths of OpenBLAS. The Linux wheel of MLX has the reference BLAS, which is too slow to serve models."""
PACKAGES = ("mlx", "mlx-lm", "transformers", "grpcio", "mlx-sidecar")


def describe() -> dict[str, object]:
    """Return machine, versions, BLAS and commit."""
    from daemon.engine.device import kernels  # loads MLX, which other users of this module do not need

    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "blas": f"OpenBLAS (kernels for {kernels()}), preloaded for every process"
        if _preloaded()
        else "as shipped with mlx",
        "commit": _git("rev-parse", "HEAD") + (" and changes" if _git("status", "--porcelain", "--", "daemon") else ""),
    }


def preload_openblas(module: str, *arguments: str, threads: int | None = None) -> None:
    """
    Start this process anew as `python -m module arguments`, with OpenBLAS; nothing if it is absent or preloaded.

    A library is preloaded only at the start of a process; the servers inherit the variables.

    Args:
        module: What to start.
        arguments: Its arguments.
        threads: Threads of OpenBLAS in each process; None for as many as there are cores.
    """
    if platform.system() != "Linux" or _preloaded():
        return
    if library := next((path for path in OPENBLAS if Path(path).exists()), None):
        command = [sys.executable, "-m", module, *arguments]
        limit = {} if threads is None else {"OPENBLAS_NUM_THREADS": str(threads)}
        os.execve(sys.executable, command, {**os.environ, "LD_PRELOAD": library, **limit})


def versions_in(venv: Path) -> dict[str, str]:
    """Return the versions of vllm-mlx, mlx-lm and mlx in a peer's environment."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    names = ("vllm-mlx", "mlx-lm", "mlx")
    shown = subprocess.run([venv / "bin" / "python", "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(zip(names, shown.stdout.split(), strict=True))


def resident_bytes(pids: Iterable[int]) -> int:
    """Return the sum of resident bytes of processes. Shared libraries count once for each process."""
    shown = subprocess.run(["ps", "-o", "rss=", *(f"-p{pid}" for pid in pids)], capture_output=True, text=True)
    return 1024 * sum(map(int, shown.stdout.split()))


def own_bytes(pid: int) -> int:
    """Return the resident bytes that a process shares with no other; all of them where the system does not tell."""
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        return resident_bytes([pid])
    return 1024 * sum(int(line.split()[1]) for line in rollup.read_text().splitlines() if line.startswith("Private_"))


def _preloaded() -> bool:
    return "openblas" in os.environ.get("LD_PRELOAD", "")


def _processor() -> str:
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()
