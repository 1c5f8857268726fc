"""
The place where a model computes: all that the results of its passes depend on beside the model.

A place is another one after any change to what computes: the device, the processor, the system, Python, MLX, mlx-lm,
this project's code, the BLAS library, settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_CODE = ("mlx", "mlx_lm", "daemon")
_CODE_SUFFIXES = (".py", ".so", ".dylib", ".metallib")
_SETTINGS = ("MLX_", "OMP_", "OPENBLAS_", "VECLIB_")
_SYSTEM_FILES = ("/System/Library/CoreServices/SystemVersion.plist", "/proc/driver/nvidia/version")
"""They name the build of macOS, with its Metal and Accelerate, and the driver of a CUDA card."""


def code_of_kv() -> str:
    """
    Return the versions of the libraries that compute KV, in words.

    A release of mlx-lm may mend how a model computes: KV of the one before it is wrong then, under the same name. A
    place is too narrow a name for it: KV is worth more than a test, and may outlive an update of the system.
    """
    return f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}"


def place_of(device: str) -> str:
    """
    Return what results depend on beside the model, as a digest. Takes some ten milliseconds.

    Args:
        device: The device that MLX computes on.
    """
    system = os.uname()
    settings = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith(_SETTINGS) and not name.startswith("MLX_SIDECAR_")
    )
    machine = [device, system.sysname, system.release, system.version, system.machine, os.cpu_count(), *_processor()]
    software = [sys.version, version("mlx"), version("mlx-lm"), [*_code()], [*_libraries()], [*_builds()]]
    return hashlib.sha256(json.dumps([machine, software, settings]).encode()).hexdigest()


def _processor() -> Iterator[str]:
    """Name the processor where the system does not tell it by the machine: its instructions decide on kernels."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        yield from sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})


def _code() -> Iterator[object]:
    """Stamp the files that compute: a package that is edited in place keeps its version."""
    for package in _CODE:
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            files = (file for file in Path(root).rglob("*") if file.suffix in _CODE_SUFFIXES)
            yield from sorted(map(_stamp, files))


def _libraries() -> Iterator[object]:
    """Stamp the BLAS libraries that this process has loaded; on macOS they are a part of the system."""
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in maps if "blas" in line or "lapack" in line}
        yield from sorted(_stamp(Path(path)) for path in paths)


def _builds() -> Iterator[str]:
    for name in _SYSTEM_FILES:
        with suppress(OSError):
            yield Path(name).read_text(errors="replace")


def _stamp(file: Path) -> tuple[str, int, int]:
    """Return path, size and time of a file. Not its ctime: an installer that links to it elsewhere changes that."""
    try:
        found = file.stat()
    except OSError:  # it was just removed, or a library was replaced: its old path says so
        return str(file), 0, 0
    return str(file), found.st_size, found.st_mtime_ns
