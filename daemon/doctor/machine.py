"""Checks of the machine: library versions, operating system, device, memory, clock and open files."""

from __future__ import annotations

import json
import re
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import daemon
from daemon.doctor.finding import Finding, failed, ok, skipped, warning
from daemon.doctor.system import System
from daemon.engine.memory.memory_budget import MemoryBudget, memory_limit
from daemon.engine.memory.prefix_budget import PrefixBudget
from daemon.launchd.agent import OPEN_FILES
from daemon.shared.config import Config
from daemon.shared.distributions import AGAIN, mismatch
from daemon.shared.wording import size

TESTED_FILE = Path(daemon.__file__).with_name("constraints.txt")
"""Constraints file with the tested version of every library, in the format of `pip install -c`."""

EXAMINED = (
    "mlx",
    "mlx-lm",
    "transformers",
    "tokenizers",
    "safetensors",
    "llguidance",
    "jinja2",
    "regex",
    "grpcio",
    "protobuf",
    "huggingface-hub",
)
"""Libraries that affect what is computed, read or sent. Versions of other libraries are not checked."""

AS_TESTED = (
    "harmless unless something else is odd; the tested ones come with, in a checkout: "
    "uv tool install --reinstall -c daemon/constraints.txt ."
)

OLDEST_MACOS = 14
WIRING_MACOS = 15
"""The oldest macOS with what MLX wires memory by."""
NEURAL_CHIP, NEURAL_MACOS = re.compile(r"Apple M([5-9]|\d\d)\b"), (26, 2)
"""
Chips with accelerators that MLX computes with, and the oldest macOS that has them for it. Wheels for macOS 26 are built
for 26.2 and are installed on any macOS 26: there they use what the system lacks (ml-explore/mlx, issue 4525).
"""

LEAST_GFLOPS = 10.0
"""A CPU that multiplies slower than this has a BLAS that does not use it: reference BLAS has 1 to 5, one core 30."""
OLD_KERNELS = frozenset({"Prescott", "Core2", "Generic"})
"""What OpenBLAS falls back to on an x86 processor that its release does not know."""
NEWER_KERNELS = {"avx512f": "SkylakeX", "avx2": "Haswell"}
"""Kernels of OpenBLAS that each instruction set is enough for."""
BLAS_PAGE = "see docs/linux.md, A faster BLAS"


def versions(installed: Callable[[str], str] = version) -> Finding:
    """Compare the installed libraries with the tested versions."""
    pins, present, untested, missing = tested(), [], [], []
    for name in EXAMINED:
        try:
            found = installed(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        present.append(f"{name} {found}")
        if found != pins[name]:
            untested.append(f"{present[-1]} (tested: {pins[name]})")
    if missing:
        return failed("versions", f"not installed: {', '.join(missing)}", "install mlx-sidecar again")
    if problem := mismatch(installed):
        return failed("versions", problem.partition(";")[0], AGAIN)
    python = f"Python {sys.version.split()[0]}"
    if untested:
        return warning("versions", f"{python}, {', '.join(untested)}", AS_TESTED)
    return ok("versions", f"{python}, {', '.join(present)}")


def tested() -> dict[str, str]:
    """Return name and version of each library in the constraints file."""
    lines = TESTED_FILE.read_text("ascii").splitlines()
    pins = (line.partition("==") for line in lines if not line.startswith("#"))
    return {name: version for name, _, version in pins}


def operating_system(system: System) -> Finding:
    """Check the release of macOS, and that this is not an Intel program in translation."""
    if not system.is_mac:
        return ok("system", f"{system.run('uname', '-srm') or system.platform}: a place to develop; MLX without Metal")
    release, machine = _product_version(system) or "unknown", system.run("uname", "-m") or "unknown"
    found = f"macOS {release}, {machine}"
    if system.run("sysctl", "-n", "sysctl.proc_translated") == "1" or machine != "arm64":
        return failed(
            "system", found, "install a native arm64 Python: this one runs in translation, or on an Intel Mac"
        )
    if _macos(system) < (OLDEST_MACOS,):
        return failed("system", found, f"MLX needs macOS {OLDEST_MACOS} or newer")
    return ok("system", found)


def _product_version(system: System) -> str | None:
    return system.run("sw_vers", "-productVersion")


def _macos(system: System) -> tuple[int, ...]:
    """Return the release of macOS as numbers, such as (26, 2); empty if it is not told."""
    parts = (_product_version(system) or "").split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def device(system: System, config: Config) -> Iterator[Finding]:
    """Run a computation of MLX in a process of its own, and compare the memory with the configuration."""
    # -P, as for the engine: a folder named "daemon" in the working directory must not shadow this package.
    command = (sys.executable, "-P", "-m", "daemon.engine.device")
    report = system.run(*command)
    if report is None:
        yield failed("device", "MLX cannot be loaded or crashed", f"this shows the error; run: {shlex.join(command)}")
        return
    probe: dict[str, Any] = json.loads(report)
    yield _device(system, probe)
    if probe["gflops"] is not None and not system.is_mac:
        yield _blas(probe)
    yield _memory(probe, config)
    yield _pressure(system, probe)
    yield _wired(system, probe, config)


def _device(system: System, probe: dict[str, Any]) -> Finding:
    if not probe["computes"]:
        return failed(
            "device", f"{probe['device']} computes wrongly", "restart the machine; then try another version of mlx"
        )
    if system.is_mac and not (probe["metal"] and probe["device"].startswith("gpu")):
        return failed(
            "device", f"{probe['device']}: no Metal device", "virtual machines have none; check the mlx wheel"
        )
    if system.is_mac and NEURAL_CHIP.search(probe["device"]) and (NEURAL_MACOS[0],) <= _macos(system) < NEURAL_MACOS:
        found = f"{probe['device']}, computes; MLX's wheel for macOS 26 is built for 26.2"
        return warning("device", found, "update macOS to 26.2 or newer: until then models may fail, or answer wrongly")
    return ok("device", f"{probe['device']}, computes")


def _blas(probe: dict[str, Any]) -> Finding:
    """Check that what multiplies on a CPU is no reference library: MLX's wheel of Linux brings one."""
    gflops, kernels, vectors = probe["gflops"], probe["kernels"], probe["vectors"]
    found = f"with this shell's variables, {gflops:,.0f} billion operations a second in a multiplication"
    if kernels is None:
        if gflops < LEAST_GFLOPS:
            return warning("BLAS", f"{found}: MLX's wheel has a slow library", f"preload OpenBLAS; {BLAS_PAGE}")
        return ok("BLAS", found)
    found += f", by OpenBLAS with kernels for {kernels}"
    if kernels in OLD_KERNELS and vectors is not None:
        better = NEWER_KERNELS[vectors]
        text = f"{found}, though the processor has {vectors}"
        return warning("BLAS", text, f"set OPENBLAS_CORETYPE={better} for the daemon; {BLAS_PAGE}")
    return ok("BLAS", found)


def _memory(probe: dict[str, Any], config: Config) -> Finding:
    limit = memory_limit(probe["working_set_bytes"])
    found = f"{size(limit)} for weights, prefixes and requests"
    if probe["working_set_bytes"]:
        allowed = "the recommended working set" if probe["metal"] else "the card's memory"
        found += f": 0.9 of {allowed}, {size(probe['working_set_bytes'])} of {size(probe['memory_bytes'])}"
    total = int(probe["memory_bytes"])
    prefixes = PrefixBudget.of(config.kv_cache_bytes, total, MemoryBudget(limit)).most
    found += f"; at most {size(prefixes)} of it for prefixes (kv_cache_mb = {config.kv_cache_mb})"
    if 0 < config.model_cache_bytes < limit:
        weights = size(config.model_cache_bytes)
        found += f"; at most {weights} of it for weights, unless model_cache_mb (now {config.model_cache_mb}) is raised"
    asked = config.model_cache_bytes + prefixes
    if asked > limit:
        found += f"; model_cache_mb and kv_cache_mb together ask for {size(asked)}, and share what there is"
    return ok("memory", found)


def _wired(system: System, probe: dict[str, Any], config: Config) -> Finding:
    if not config.wire_weights:
        return ok("wired weights", "off: the system may compress or swap out the weights of an idle model")
    if not probe["metal"]:
        return warning("wired weights", "wire_weights is set, without a Metal device", "nothing is wired; unset it")
    if _macos(system) < (WIRING_MACOS,):
        found = f"wire_weights is set, and needs macOS {WIRING_MACOS} or newer"
        return warning("wired weights", found, "nothing is wired; unset it, or update macOS")
    return ok("wired weights", "on: set once a load, at most the recommended working set")


def _pressure(system: System, probe: dict[str, Any]) -> Finding:
    level = probe["pressure"]
    if level in (1, 2, 4):
        return ok("memory pressure", f"the kernel tells it: level {level} of 1, 2, 4")
    if level == "psi":
        return ok("memory pressure", "the kernel tells it in /proc/pressure/memory")
    if system.is_mac:
        return failed(
            "memory pressure", f"the kernel's level is {level}", "memory is not freed for others; report this"
        )
    return skipped("memory pressure", "this kernel does not tell it; nothing is freed for others")


def clock(system: System) -> Finding:
    """Check that the system has a clock that continues during sleep."""
    name = "CLOCK_MONOTONIC_RAW" if system.is_mac else "CLOCK_BOOTTIME"
    if not hasattr(time, name):
        return warning("clock", f"no {name}", "times-to-live stand still while the machine sleeps")
    slept = time.clock_gettime(getattr(time, name)) - time.monotonic()
    return ok("clock", f"{name} goes on during sleep; asleep since the start of the machine: {max(slept, 0):.0f} s")


def open_files(limit: Callable[[int], tuple[int, int]] = resource.getrlimit) -> Finding:
    """Check that the limit of open files allows enough clients."""
    soft, hard = limit(resource.RLIMIT_NOFILE)
    found = f"soft limit {_limit(soft)}, hard limit {_limit(hard)}"
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        found += f"; the daemon raises its own to {most}"
    if most < OPEN_FILES:
        return warning(
            "open files", found, "each client takes one; raise it with: ulimit -Hn, or launchctl limit maxfiles"
        )
    return ok("open files", found)


def _limit(value: int) -> str:
    return "none" if value == resource.RLIM_INFINITY else str(value)
