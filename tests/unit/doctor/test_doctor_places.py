"""The doctor's findings about places: the socket, the log file, and prefixes on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.doctor import places
from daemon.doctor.checkup import checkup
from daemon.doctor.finding import Verdict
from daemon.doctor.system import System
from daemon.shared.config import Config
from tests.support.disks import KIB, MIB, disk_has


def test_doctor_reports_an_unsafe_socket_path(folder: Path) -> None:
    """The check creates no directory or file."""
    place = folder / "run" / "s.sock"
    assert places.socket(place).verdict is Verdict.OK
    assert not place.parent.exists()
    place.parent.mkdir(0o755)
    assert f"--socket {place.parent}/mlx-sidecar/s.sock" in places.socket(place).fix
    place.parent.chmod(0o700)
    assert places.socket(place).found.endswith("directory mode 0700")
    assert places.socket(folder / ("x" * 100)).verdict is Verdict.FAILED
    place.write_text("a file")
    assert places.socket(place).verdict is Verdict.FAILED


def test_doctor_reports_a_full_log_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk under the log is reported, because log lines would be lost."""
    disk_has(monkeypatch, total=4000 * KIB, free=1200 * KIB)
    finding = places.log_file(tmp_path / "log")
    assert finding.verdict is Verdict.FAILED
    assert finding.found.endswith("on a disk with 1.2 MiB left; one log file takes 10.0 MiB")


def test_doctor_reports_an_unwritable_log_file(tmp_path: Path) -> None:
    """The log cannot be written because a file is in place of its directory."""
    assert places.log_file(None).verdict is Verdict.SKIPPED
    assert places.log_file(tmp_path / "new" / "log").verdict is Verdict.OK
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    assert places.log_file(tmp_path / "file").verdict is Verdict.OK
    finding = places.log_file(tmp_path / "file" / "log")
    assert finding.verdict is Verdict.FAILED
    assert finding.found.endswith(f"{tmp_path / 'file'} is no directory that can be written to")
    assert places.log_file(tmp_path).verdict is Verdict.FAILED


def test_doctor_tells_of_prefixes_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much may lie there, and what keeps the daemon from using the directory."""
    folder = tmp_path / "state" / "kv"
    assert places.prefixes(folder, 0).verdict is Verdict.SKIPPED
    disk_has(monkeypatch, total=1000 * MIB, free=900 * MIB)
    assert "0 B of 45.0 MiB; 900.0 MiB of the disk are free" in places.prefixes(folder, None).found
    assert not folder.parent.exists()
    folder.mkdir(parents=True, mode=0o700)
    (folder / "a.kv").write_bytes(b"x" * 1024)
    assert "1.0 KiB of 2.0 MiB" in places.prefixes(folder, 2 << 20).found
    disk_has(monkeypatch, total=1000 * MIB, free=90 * MIB)
    assert places.prefixes(folder, None).verdict is Verdict.WARNING
    disk_has(monkeypatch, total=300 * MIB, free=280 * MIB)
    small = places.prefixes(folder, None)
    assert (small.verdict, "comes to 14.0 MiB" in small.found) == (Verdict.WARNING, True)
    assert small.fix.endswith("set kv_disk_dir to a larger one, or set kv_disk_mb")
    assert places.prefixes(folder, 2 << 20).verdict is Verdict.OK
    disk_has(monkeypatch, total=300 * MIB, free=33 * MIB)
    full = places.prefixes(folder, 64 << 20)
    assert "kv_disk_mb allows 64.0 MiB; the disk has room for 3.0 MiB of it: its last tenth stays free" in full.found
    assert (full.verdict, full.fix) == (Verdict.WARNING, "make room on the disk, or set kv_disk_dir to a larger one")
    folder.chmod(0o755)
    assert places.prefixes(folder, None).fix.endswith(f"chmod 700 {folder}")
    (tmp_path / "file").touch()
    assert places.prefixes(tmp_path / "file", None).verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("settings", "looks", "each"),
    [
        ({}, False, "4.0 MiB"),
        ({"group_ranks": ("127.0.0.1", "127.0.0.2:7411")}, True, "2.0 MiB"),
        ({"group_listen": "127.0.0.1:7411"}, True, "4.0 MiB"),
    ],
)
def test_doctor_looks_at_the_prefixes_of_a_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], looks: bool, each: str
) -> None:
    """They lie in a directory of their own, and on the first machine they share its budget."""
    disk_has(monkeypatch, total=1000 * MIB, free=900 * MIB)
    monkeypatch.setattr("daemon.doctor.launchd.service", lambda *_: iter(()))
    monkeypatch.setattr("daemon.doctor.trial.trial", lambda *_: iter(()))
    config = Config(state_dir=tmp_path, socket=tmp_path / "run" / "sidecar.sock", kv_disk_mb=4, **settings)
    service: Any = None
    findings = [*checkup(config, System(), service, tmp_path)]
    found = [finding.found for finding in findings if finding.check.startswith("prefixes")]
    assert all(f"0 B of {each};" in text for text in found)
    folders = [text.partition(",")[0] for text in found]
    assert folders == [str(tmp_path / "kv"), *[str(tmp_path / "kv" / "group")] * looks]
