"""The memory that models may use is that of the device which computes."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from daemon.engine import device
from daemon.engine.memory.memory_budget import machine_memory
from daemon.engine.memory.wiring import wiring

CARD = 80 << 30


@pytest.fixture(name="card")
def _card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLX say that it computes on a CUDA card, as it does with that backend."""
    said = {"device_name": "NVIDIA H100", "architecture": "sm_90", "total_memory": CARD, "free_memory": CARD // 2}
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: said)
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)


@pytest.mark.usefixtures("card")
def test_memory_of_a_card_counts_and_not_the_machines() -> None:
    """A limit of the machine's memory would let a smaller card run out."""
    assert (device.working_set(), device.memory_size()) == (CARD, CARD)
    assert device.device_name() == "gpu: NVIDIA H100"


@pytest.mark.usefixtures("card")
def test_card_wires_no_weights() -> None:
    """Only Metal has a limit for that."""
    assert wiring(True)._set_limit is None


def test_machines_memory_counts_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX says nothing of memory then."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "a processor", "architecture": "x86_64"})
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert (device.working_set(), device.memory_size()) == (None, machine_memory())


def test_probe_tells_what_multiplies_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlx-sidecar doctor` warns of a slow library by it. A GPU multiplies without one."""
    found = device.probe()
    assert found["computes"]
    if found["device"] == "cpu":
        assert isinstance(found["gflops"], float)
        assert found["gflops"] > 0
    monkeypatch.setattr(device, "device_name", lambda: "gpu: Apple M4 Max")
    assert device.probe()["gflops"] is None


@pytest.mark.parametrize(("flags", "widest"), [("sse2 avx2 avx512f", "avx512f"), ("sse2 avx2", "avx2"), ("sse2", None)])
def test_widest_vectors_of_a_processor_are_named(flags: str, widest: str | None, tmp_path: Path) -> None:
    """They decide which kernels of OpenBLAS it can run."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    assert device.vectors(cpuinfo) == widest
    assert device.vectors(tmp_path / "missing") is None
