"""The memory that models may use is that of the device which computes."""

from __future__ import annotations

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
