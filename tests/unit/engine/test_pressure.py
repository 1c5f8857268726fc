"""When the system is short of memory, cached prefixes go first, then idle models; what is in use never does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.engine.memory.pressure import (
    RELIEF_SECONDS,
    Level,
    LinuxPressure,
    MacPressure,
    Relief,
    normal,
    sysctl_level,
    system_pressure,
)
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.builders import Clock
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Harness, generate
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=20, tokens_hint=300)).completion()


def _psi(some: float, full: float) -> str:
    shares = {"some": some, "full": full}
    return "".join(f"{kind} avg10={share:.2f} avg60=99.00 avg300=99.00 total=1\n" for kind, share in shares.items())


@pytest.mark.parametrize(
    ("text", "level"),
    [
        (_psi(0, 0), Level.NORMAL),
        (_psi(19.9, 9.9), Level.NORMAL),
        (_psi(20, 0), Level.WARNING),
        (_psi(60, 10), Level.CRITICAL),
        ("", Level.NORMAL),
        ("nonsense\n", Level.NORMAL),
    ],
)
def test_linux_memory_pressure_is_the_stall_time(tmp_path: Path, text: str, level: Level) -> None:
    """Only the last ten seconds count."""
    (tmp_path / "memory").write_text(text)
    assert LinuxPressure(tmp_path / "memory")() is level


def test_linux_without_psi_reports_no_pressure(tmp_path: Path) -> None:
    """As in many containers."""
    assert LinuxPressure(tmp_path / "memory")() is Level.NORMAL


@pytest.mark.parametrize(
    ("value", "level"),
    [(None, 0), (0, 0), (1, 0), (2, 1), (4, 2)],
)
def test_mac_memory_pressure_is_the_kernel_level(value: int | None, level: int) -> None:
    """1, 2 and 4 are its values."""
    assert MacPressure(lambda: value)() == level


def test_memory_pressure_source_depends_on_the_system() -> None:
    """And asking it never fails, wherever the tests run."""
    assert isinstance(system_pressure("darwin"), MacPressure)
    assert isinstance(system_pressure("linux"), LinuxPressure)
    assert system_pressure("freebsd14") is normal
    assert system_pressure()() in Level
    assert normal() is Level.NORMAL
    assert sysctl_level() in (None, 0, 1, 2, 4)


class Memory:
    """Memory that can be freed: prefixes, and models of 100 bytes each."""

    def __init__(self, prefixes: int, models: int) -> None:
        self.level = Level.NORMAL
        self.prefixes = prefixes
        self.models = models
        self.clock = Clock()
        self.relief = Relief(lambda: self.level, lambda: self.prefixes, self._prefixes, self._models, self.clock)

    def _prefixes(self, nbytes: int) -> int:
        self.prefixes -= nbytes
        return nbytes

    def _models(self, nbytes: int) -> int:
        count = min(self.models, -(-nbytes // 100))
        self.models -= count
        return 100 * count

    def check(self) -> tuple[int, int]:
        """Check once, a relief later, and return what is left."""
        self.clock.pass_(RELIEF_SECONDS)
        self.relief.check()
        return self.prefixes, self.models


def test_warning_pressure_sheds_prefixes_then_models() -> None:
    """Nothing is freed that need not be."""
    memory = Memory(3, 2)
    assert memory.check() == (3, 2)
    memory.level = Level.WARNING
    assert [memory.check() for _ in range(5)] == [(1, 2), (0, 2), (0, 1), (0, 0), (0, 0)]


def test_critical_pressure_sheds_everything_idle() -> None:
    """Both kinds."""
    memory = Memory(3, 2)
    memory.level = Level.CRITICAL
    assert memory.check() == (0, 0)


def test_memory_shedding_pauses_after_each_step() -> None:
    """Or a short peak would cost everything."""
    memory = Memory(8, 2)
    memory.level = Level.WARNING
    assert memory.check() == (4, 2)
    memory.clock.pass_(RELIEF_SECONDS - 1)
    assert memory.relief.check() == 0
    memory.clock.pass_(1)
    assert memory.relief.check() == 2


def test_lasting_memory_pressure_is_logged_once() -> None:
    """Once more when the level changes; a night of pressure by another program leaves few lines."""
    memory = Memory(1, 0)
    with capture_logs() as logs:
        for level in (Level.WARNING, Level.WARNING, Level.WARNING, Level.CRITICAL, Level.NORMAL, Level.WARNING):
            memory.level = level
            memory.check()
            memory.check()
    lines = [(line["pressure"], line["prefix_bytes"]) for line in logs]
    assert lines == [("warning", 1), ("critical", 0), ("warning", 0)]


def test_memory_pressure_spares_what_is_in_use(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """The stream gives the same answer as ever; pinned models stay too."""
    harness = engine()
    expected = harness.run(generate(PROMPT, max_tokens=200)).text
    idle, pinned = str(copy_of_embedded(tmp_path, "idle")), str(copy_of_embedded(tmp_path, "pinned"))
    harness.run(pb.GetOrLoadRequest(model=idle))
    harness.run(pb.GetOrLoadRequest(model=pinned, pin=True))
    call = harness.begin(generate(PROMPT, max_tokens=200))
    harness.until(lambda: harness.decoding(call))
    harness.pressure = Level.CRITICAL
    with capture_logs() as logs:
        harness.clock_offset += 2 * RELIEF_SECONDS
        harness.step()
    harness.pressure = Level.NORMAL
    (line,) = (line for line in logs if line["event"] == "memory_pressure")
    assert line["pressure"] == "critical"
    assert line["model_bytes"] > 0
    assert {model.info.model for model in harness.figures.models} == {"embedded", pinned}
    assert harness.figures.model_cache.evictions == 1
    harness.finish(call)
    deltas = [event.generate.delta.text for event in harness.of(call) if event.generate.HasField("delta")]
    assert "".join(deltas) == expected
    harness.settle()


def test_disabled_memory_pressure_eviction_keeps_all(engine: Callable[..., Harness]) -> None:
    """`evict_on_memory_pressure` off."""
    harness = engine(evict_on_memory_pressure=False)
    harness.run(generate(PROMPT))
    harness.pressure = Level.CRITICAL
    harness.clock_offset += 2 * RELIEF_SECONDS
    harness.step()
    assert harness.models == 1
    assert harness.figures.prefix_cache.blocks > 0
