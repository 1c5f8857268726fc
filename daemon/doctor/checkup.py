"""Runs all checks in order of cause: the machine, the daemon's files, the service, a trial daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from daemon.doctor import launchd, machine, places
from daemon.doctor.finding import Finding
from daemon.doctor.system import System
from daemon.kv.disk.limits import share
from daemon.launchd.service import Service
from daemon.shared.config import Config


def checkup(config: Config, system: System, service: Service, home: Path) -> Iterator[Finding]:
    """Yield each finding as soon as it is known; the last checks take some seconds."""
    from daemon.doctor.trial import trial  # imports grpc, so not before the first findings are shown

    yield machine.versions()
    yield machine.operating_system(system)
    yield machine.clock(system)
    yield machine.open_files()
    yield from machine.device(system, config)
    yield places.socket(config.socket)
    yield places.log_file(config.log_file)
    budget = share(config.kv_disk_bytes, shared=bool(config.group_ranks))
    yield places.prefixes(config.kv_disk_folder, budget)
    if config.group_ranks or config.group_listen:
        yield places.prefixes(config.kv_disk_group_folder, budget, "prefixes of the group")
    yield from launchd.service(service, home)
    yield from trial(config.socket, system)
