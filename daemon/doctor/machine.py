"""The machine: versions, system, device, memory, clock, open files."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import daemon
from daemon.doctor.finding import Finding, failed, ok, skipped, warning
from daemon.doctor.system import System
from daemon.engine.memory.memory_budget import memory_limit
from daemon.launchd.agent import OPEN_FILES
from daemon.shared.config import Config
from daemon.shared.wording import size

TESTED_FILE = Path(daemon.__file__).with_name("constraints.txt")
"""The versions of all libraries that the tests ran with; `pip install -c` takes it as well."""

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
"""The libraries whose versions decide what is computed, read or sent; others may differ without a word."""

AS_TESTED = (
    "harmless unless something else is odd; the tested ones come with, in a checkout: "
    "uv tool install --reinstall -c daemon/constraints.txt ."
)

OLDEST_MACOS = 14


def versions(installed: Callable[[str], str] = version) -> Finding:
    """Compare what is installed with what was tested."""
    good, here, others, missing = tested(), [], [], []
    for name in EXAMINED:
        try:
            found = installed(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        here.append(f"{name} {found}")
        if found != good[name]:
            others.append(f"{here[-1]} (tested: {good[name]})")
    if missing:
        return failed("versions", f"not installed: {', '.join(missing)}", "install mlx-sidecar again")
    python = f"Python {sys.version.split()[0]}"
    if others:
        return warning("versions", f"{python}, {', '.join(others)}", AS_TESTED)
    return ok("versions", f"{python}, {', '.join(here)}")


def tested() -> dict[str, str]:
    """Return name and version of each library that the tests ran with."""
    lines = TESTED_FILE.read_text("ascii").splitlines()
    pins = (line.partition("==") for line in lines if not line.startswith("#"))
    return {name: version for name, _, version in pins}


def operating_system(system: System) -> Finding:
    """Check the release of macOS, and that this is not an Intel program in translation."""
    if not system.is_mac:
        return ok("system", f"{system.run('uname', '-srm') or system.platform}: a place to develop; MLX without Metal")
    release, machine = system.run("sw_vers", "-productVersion") or "unknown", system.run("uname", "-m") or "unknown"
    found = f"macOS {release}, {machine}"
    if system.run("sysctl", "-n", "sysctl.proc_translated") == "1" or machine != "arm64":
        return failed(
            "system", found, "install a native arm64 Python: this one runs in translation, or on an Intel Mac"
        )
    if not release.partition(".")[0].isdecimal() or int(release.partition(".")[0]) < OLDEST_MACOS:
        return failed("system", found, f"MLX needs macOS {OLDEST_MACOS} or newer")
    return ok("system", found)


def device(system: System, config: Config) -> Iterator[Finding]:
    """Let MLX compute something in a process of its own, and compare its memory with the configuration."""
    # -P, as for the engine: a folder named "daemon" in the working directory must not win.
    answer = system.run(sys.executable, "-P", "-m", "daemon.engine.device")
    if answer is None:
        yield failed("device", "MLX cannot be loaded or crashed", "run: python -m daemon.engine.device")
        return
    probe: dict[str, Any] = json.loads(answer)
    yield _device(system, probe)
    yield _memory(probe, config)
    yield _pressure(system, probe)


def _device(system: System, probe: dict[str, Any]) -> Finding:
    if not probe["computes"]:
        return failed(
            "device", f"{probe['device']} computes wrongly", "restart the machine; then try another version of mlx"
        )
    if system.is_mac and not (probe["metal"] and probe["device"].startswith("gpu")):
        return failed(
            "device", f"{probe['device']}: no Metal device", "virtual machines have none; check the mlx wheel"
        )
    return ok("device", f"{probe['device']}, computes")


def _memory(probe: dict[str, Any], config: Config) -> Finding:
    limit = memory_limit(probe["working_set_bytes"])
    found = f"{size(limit)} for weights, prefixes and requests"
    if probe["working_set_bytes"]:
        found += (
            f": 0.9 of the recommended working set, {size(probe['working_set_bytes'])} of {size(probe['memory_bytes'])}"
        )
    asked = config.model_cache_bytes + config.kv_cache_bytes
    if asked > limit:
        found += f"; model_cache_mb and kv_cache_mb together ask for {size(asked)}, and share what there is"
    return ok("memory", found)


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
    """Check that there is a clock that goes on during sleep."""
    name = "CLOCK_MONOTONIC_RAW" if system.is_mac else "CLOCK_BOOTTIME"
    if not hasattr(time, name):
        return warning("clock", f"no {name}", "times-to-live stand still while the machine sleeps")
    slept = time.clock_gettime(getattr(time, name)) - time.monotonic()
    return ok("clock", f"{name} goes on during sleep; asleep since the start of the machine: {max(slept, 0):.0f} s")


def open_files(limit: Callable[[int], tuple[int, int]] = resource.getrlimit) -> Finding:
    """Check how many clients there may be."""
    soft, hard = limit(resource.RLIMIT_NOFILE)
    infinite = hard == resource.RLIM_INFINITY
    found = f"soft limit {soft}, hard limit {'none' if infinite else hard}; the daemon raises its own to {OPEN_FILES}"
    if not infinite and hard < OPEN_FILES:
        return warning(
            "open files", found, "each client takes one; raise it with: ulimit -Hn, or launchctl limit maxfiles"
        )
    return ok("open files", found)
