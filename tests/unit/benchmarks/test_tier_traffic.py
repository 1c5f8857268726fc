"""The simulation of agents over the disk tier: figures add up, and the limits of the disk hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tier_traffic
from benchmarks.tier_traffic import Row, simulate


def test_simulated_agents_reuse_memory_and_disk() -> None:
    """A restart half way leaves the disk; no more is written than its limits allow."""
    row = simulate(Row(memory_gb=3, disk_gb=3), agents=3, minutes=4, seed=1)
    assert row.turns > 10
    assert row.from_memory > 0
    assert row.from_disk > 0
    assert row.from_memory + row.from_disk < row.looked_up
    assert 0 < row.written_gb <= 6
    assert row.read_gb > 0


def test_simulation_without_a_disk_writes_nothing() -> None:
    """Its figures are those of memory alone."""
    row = simulate(Row(memory_gb=3, disk_gb=0), agents=2, minutes=2, seed=1)
    assert row.from_memory > 0
    assert row.from_disk == row.written_gb == row.read_gb == 0


def test_simulation_draws_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And writes its figures; the same figures give the same picture."""
    figures, pictures = tmp_path / "figures.json", [tmp_path / "one.svg", tmp_path / "two.svg"]
    command = ["tier_traffic", "--agents", "1", "--minutes", "1", "--memory", "1", "--disk", "0", "1"]
    for picture in pictures:
        monkeypatch.setattr("sys.argv", [*command, "--out", str(figures), "--picture", str(picture)])
        assert tier_traffic.main() == 0
    rows = json.loads(figures.read_text())["rows"]
    assert [row["disk_gb"] for row in rows] == [0, 1]
    assert pictures[0].read_text() == pictures[1].read_text()
