"""
The Nth evaluation, allocation, file operation or frame of a call fails, for N = 1, 2, 3 … until none fails.

Three ends are allowed. The answer is exact, because a fault of the cache costs only time. The call alone gets a typed
error. Or a step of the device failed, and the engine ends with that error; the parent replaces it. Where the engine
lives on, a recount agrees with every count, and nothing is held.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import pytest

from daemon.cache.mlx.load_notes import LoadNotes
from daemon.cache.mlx.measurements import Measurements
from daemon.cache.mlx.self_tests import Verdicts
from daemon.server.supervision import engine_process
from daemon.server.supervision.supervisor import State
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.faults.nth import Injected, failing
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import MEASURED, TESTED, Answer, Harness, generate
from tests.unit.server.supervised import PATIENCE, supervising
from tests.unit.server.supervised import generate as command

PROMPT = "The code of the north is seven and the code of the south is eight. "
GOES_ON = pb.Stop(ignore_eos=True)
REQUEST = generate(PROMPT, max_tokens=4, stop=GOES_ON)
V = TypeVar("V")

LAST = 400
"""More calls than any of these takes; a sweep that gets here never ends."""

Targets = list[tuple[Any, str]]
EVALUATIONS: Targets = [(mx, "eval"), (mx, "async_eval")]
ALLOCATIONS: Targets = [(mx, name) for name in ("zeros", "concatenate", "stack", "contiguous", "arange", "argmax")]
FILES: Targets = [(os, "stat"), (builtins, "open"), (mx, "load"), (Path, "open"), (Path, "stat"), (Path, "iterdir")]
MEMORY = "[metal::malloc] Attempting to allocate more than the limit"


class OutOfMemory(Injected, RuntimeError):
    """The error that MLX raises when Metal has no memory."""


class Alike(LoadNotes[V]):
    """Takes each model for the one that was noted first, since all that are loaded have the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self._first: V | None = None

    def find(self, name: str) -> V | None:
        """Return what was noted of the first model."""
        return self._first

    def keep(self, name: str, value: V) -> None:
        """Note a model."""
        self._first = value


Known = tuple[Measurements, Verdicts]
"""What loads found out of models."""


class Rig:
    """
    An engine, and the next one when it has ended.

    Attributes:
        ends: How the calls ended, by reason; "" for an answer, "engine" for the end of the engine.
        known: What loads found out. A rig whose models are alike may measure and test the first of them alone.
    """

    def __init__(self, folder: Path, known: Known) -> None:
        self.ends: Counter[str] = Counter()
        self.known = known
        self._folder = folder
        self.harness = self._new()

    def _new(self) -> Harness:
        measured, verdicts = self.known
        return Harness(measured=measured, verdicts=verdicts, state_dir=self._folder / "state")

    def run(self, request: Any, targets: Targets, number: int, error: Callable[[], Exception]) -> tuple[Answer, bool]:
        """Run a call with the Nth of the targets failing; return its events, and whether that was reached."""
        with failing(targets, number, error) as nth:
            try:
                answer = self.harness.run(request)
            except Injected:
                self.ends["engine"] += 1
                answer = Answer(self.harness.events[-1:] or [ipc.Event()])
                self.harness.close()
                self.harness = self._new()
                return answer, True
        self.harness.settle()
        self.ends[answer.failure.reason] += 1
        return answer, nth.reached


def memory() -> Exception:
    """Return the error that MLX raises."""
    return OutOfMemory(MEMORY)


def disk() -> Exception:
    """Return the error of a failing disk."""
    return OSError(5, "Input/output error")


@pytest.fixture(name="known")
def _known() -> Known:
    """Return what loads found out: of each model, once it was loaded."""
    return MEASURED, TESTED


@pytest.fixture(name="rig")
def _rig(tmp_path: Path, known: Known) -> Iterator[Rig]:
    """Return an engine with calls that may fail."""
    rig = Rig(tmp_path, known)
    yield rig
    rig.harness.close()


@pytest.mark.parametrize(
    ("targets", "warm"),
    [
        (EVALUATIONS, True),
        (EVALUATIONS, False),
        (ALLOCATIONS, False),
        pytest.param(ALLOCATIONS, True, marks=pytest.mark.slow),
    ],
    ids=["warm evaluation", "cold evaluation", "cold allocation", "warm allocation"],
)
def test_failed_generate_leaves_the_next_one_exact(rig: Rig, targets: Targets, warm: bool) -> None:
    """Lookup, restore, prefill, decode, store; a cold request has a salt that is new."""
    request = pb.GenerateRequest()
    request.CopyFrom(REQUEST)
    expected = rig.harness.run(request).content
    for number in range(1, LAST):
        if not warm:
            request.cache.salt = uuid.uuid4().hex
        ended = rig.ends["engine"]
        answer, reached = rig.run(request, targets, number, memory)
        if rig.ends["engine"] == ended:
            assert answer.failure.reason in ("INTERNAL", "MACHINE_EXHAUSTED") or answer.content == expected, number
            assert MEMORY not in answer.failure.message
        assert rig.harness.run(request).content == expected, number
        if not reached:
            break
    assert rig.ends[""] >= 1
    assert number > 5
    assert rig.ends["INTERNAL"] + rig.ends["MACHINE_EXHAUSTED"] + rig.ends["engine"] > 0, rig.ends


@pytest.mark.parametrize(
    ("targets", "error", "known"),
    [
        # Passes open no file, and take most of the time of these loads.
        (FILES, disk, (Measurements(Alike()), Verdicts(Alike()))),
        pytest.param(EVALUATIONS, memory, (MEASURED, TESTED), marks=pytest.mark.slow),
        pytest.param(ALLOCATIONS, memory, (MEASURED, TESTED), marks=pytest.mark.slow),
    ],
    ids=["files", "evaluation", "allocation"],
)
def test_failed_load_keeps_nothing_and_can_be_retried(
    rig: Rig, tmp_path: Path, targets: Targets, error: Callable[[], Exception]
) -> None:
    """Each time with a model that no call has used before."""
    for number in range(1, LAST):
        model = copy_of_embedded(tmp_path, f"m{number}")
        _, reached = rig.run(pb.GetOrLoadRequest(model=str(model)), targets, number, error)
        assert rig.harness.run(pb.GetOrLoadRequest(model=str(model))).info.size_bytes > 0, number
        rig.harness.run(pb.InvalidateRequest(all=pb.AllTarget(weights=True)))
        assert rig.harness.models == 0
        shutil.rmtree(model)
        if not reached:
            break
    assert number > 3
    assert set(rig.ends) <= {"", "MACHINE_EXHAUSTED", "MACHINE_FAULT", "MODEL_NOT_FOUND", "engine"}, rig.ends
    assert len(rig.ends) > 1, "nothing ever failed"


@pytest.mark.parametrize("target", ["all", "prefix"])
def test_invalidate_is_atomic_under_faults(rig: Rig, target: str) -> None:
    """After a failed call the next one drops the rest."""
    request = pb.InvalidateRequest(all=pb.AllTarget(weights=True, prefixes=True))
    if target == "prefix":
        request = pb.InvalidateRequest(prefix=pb.PrefixTarget(model="embedded", text=PROMPT))
    for number in range(1, LAST):
        rig.harness.run(REQUEST)
        _, reached = rig.run(request, [*EVALUATIONS, *ALLOCATIONS], number, memory)
        assert rig.harness.run(request).failure.reason == ""
        assert rig.harness.run(REQUEST).cached == 0
        if not reached:
            break
    assert set(rig.ends) <= {"", "MACHINE_EXHAUSTED", "MODEL_NOT_FOUND", "INTERNAL", "engine"}


async def test_frame_write_failure_fails_its_call() -> None:
    """The parent's end of the line: its caller is told, nothing waits for ever, the next one is answered."""
    async with supervising() as supervisor:
        for number in range(1, LAST):
            async with asyncio.timeout(PATIENCE):
                while supervisor.state is not State.READY:  # noqa: ASYNC110 - it may be so already
                    await asyncio.sleep(0.01)
            with failing([(engine_process, "encode_frame")], number) as nth:
                call = None
                try:
                    call = supervisor.router.open(command("ok"))
                    assert [event async for event in call.events()]
                except Injected:
                    assert nth.reached
                finally:
                    if call is not None:
                        call.close()
            assert len(supervisor.router._calls) == len(supervisor.router._unsent) == 0, number
            if not nth.reached:
                break
        assert number > 1
