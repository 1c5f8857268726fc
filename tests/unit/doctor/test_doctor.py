"""The doctor's findings, from recorded answers of Macs and from machines that are not as they should be."""

from __future__ import annotations

import json
import resource
import shlex
import sys
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from daemon.doctor import machine, trial
from daemon.doctor.finding import Verdict
from daemon.doctor.system import System
from daemon.launchd.agent import OPEN_FILES
from daemon.shared import process_setup
from daemon.shared.config import Config
from mlx_sidecar import Completion, TokenLogprob
from tests.unit.cli.cli_fakes import TIMINGS, USAGE

GIB = 1 << 30
MAC_PROBE = {
    "device": "gpu: Apple M4 Max",
    "metal": True,
    "memory_bytes": 64 * GIB,
    "working_set_bytes": 48 * GIB,
    "computes": True,
    "gflops": None,
    "kernels": None,
    "vectors": None,
    "pressure": 1,
}
ASSERTIONS = """Assertion status system-wide:
   PreventUserIdleDisplaySleep    0
   PreventUserIdleSystemSleep     1
Listed by owning process:
   pid 97(powerd): [0x0000000100098001] 01:02:03 PreventUserIdleSystemSleep named: "Powerd - Prevent sleep"
   pid 412(caffeinate): [0x0000a1b20001a2c3] 00:00:02 PreventUserIdleSystemSleep named: "caffeinate command-line tool"
\tDetails: caffeinate asserting on behalf of Process ID 4711
"""


@dataclass(frozen=True, slots=True)
class Recorded(System):
    """A machine that answers commands by their first words."""

    platform: str = "darwin"
    answers: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str) -> str | None:
        line = " ".join(command)
        return next((answer for begin, answer in self.answers.items() if begin in line), None)


def mac(**answers: str) -> Recorded:
    return Recorded(
        answers={
            "sw_vers": "26.1",
            "uname -m": "arm64",
            "proc_translated": "0",
            "daemon.engine.device": json.dumps(MAC_PROBE),
            "pgrep -P 4711": "412",
            "pmset": ASSERTIONS,
            **answers,
        }
    )


def probe(**changed: Any) -> Recorded:
    return mac(**{"daemon.engine.device": json.dumps(MAC_PROBE | changed)})


def test_doctor_warns_of_untested_library_versions() -> None:
    """The warning names the tested versions."""
    good = machine.tested() | {"mlx-sidecar": "0.2.0", "mlx-sidecar-client": "0.2.0"}
    known = machine.versions(good.__getitem__)
    assert (known.verdict, known.fix) == (Verdict.OK, "")
    assert f"protobuf {good['protobuf']}" in known.found
    newer = machine.versions((good | {"mlx": "0.32.9"}).__getitem__)
    assert newer.verdict is Verdict.WARNING
    assert f"mlx 0.32.9 (tested: {good['mlx']})" in newer.found
    assert "-c daemon/constraints.txt" in newer.fix

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    assert machine.versions(missing).verdict is Verdict.FAILED


def test_doctor_refuses_a_client_of_another_version() -> None:
    """A checkout that is not installed has none; a daemon of one version and messages of another is an error."""
    good = machine.tested()
    equal = good | {"mlx-sidecar": "0.2.0", "mlx-sidecar-client": "0.2.0"}
    assert machine.versions(equal.__getitem__).verdict is Verdict.OK
    other = machine.versions((equal | {"mlx-sidecar-client": "0.3.0"}).__getitem__)
    assert (other.verdict, other.found) == (
        Verdict.FAILED,
        "mlx-sidecar 0.2.0 does not go with mlx-sidecar-client 0.3.0",
    )


def test_doctor_accepts_the_tested_libraries() -> None:
    """An environment made as documented gives no warning; a constant warning would be ignored."""
    found = machine.versions()
    assert (found.verdict, found.fix) == (Verdict.OK, ""), found.found


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ({}, Verdict.OK),
        ({"sw_vers": "13.6.1"}, Verdict.FAILED),
        ({"uname -m": "x86_64"}, Verdict.FAILED),
        ({"proc_translated": "1"}, Verdict.FAILED),
    ],
)
def test_doctor_checks_mac_cpu_and_macos_version(answers: dict[str, str], verdict: Verdict) -> None:
    """MLX has no wheels for Intel Macs and older systems."""
    assert machine.operating_system(mac(**answers)).verdict is verdict


def test_doctor_checks_metal_working_set() -> None:
    """All three findings about the device have their figures."""
    device, memory, pressure, wired = machine.device(mac(), Config())
    assert (device.verdict, device.found) == (Verdict.OK, "gpu: Apple M4 Max, computes")
    assert memory.found.startswith(
        "43.2 GiB for weights, prefixes and requests: 0.9 of the recommended working set, 48.0"
    )
    assert "at most 16.0 GiB of it for prefixes (kv_cache_mb = auto)" in memory.found
    assert "at most 24.0 GiB of it for weights, unless model_cache_mb (now 24576) is raised" in memory.found
    assert (pressure.verdict, wired.verdict) == (Verdict.OK, Verdict.OK)
    assert wired.found.startswith("off")


@pytest.mark.parametrize(
    ("probed", "verdict", "told"),
    [
        ({"gflops": 2.6}, Verdict.WARNING, "preload OpenBLAS"),
        ({"gflops": 60.0}, Verdict.OK, ""),
        ({"gflops": 20.0, "kernels": "Prescott", "vectors": "avx512f"}, Verdict.WARNING, "OPENBLAS_CORETYPE=SkylakeX"),
        ({"gflops": 20.0, "kernels": "Prescott", "vectors": "avx2"}, Verdict.WARNING, "OPENBLAS_CORETYPE=Haswell"),
        ({"gflops": 20.0, "kernels": "Prescott"}, Verdict.OK, ""),
        ({"gflops": 60.0, "kernels": "Zen", "vectors": "avx2"}, Verdict.OK, ""),
    ],
)
def test_doctor_warns_on_linux_of_a_slow_blas(probed: dict[str, Any], verdict: Verdict, told: str) -> None:
    """The reference library of MLX's wheel, or kernels that OpenBLAS chose for a processor that it does not know."""
    linux = replace(probe(device="cpu", metal=False, working_set_bytes=None, **probed), platform="linux")
    blas = next(finding for finding in machine.device(linux, Config()) if finding.check == "BLAS")
    assert blas.verdict is verdict
    assert told in blas.fix


def test_doctor_looks_at_no_blas_where_a_gpu_or_a_mac_computes() -> None:
    """A Mac's CPU has Accelerate."""
    for system in (mac(), probe(device="cpu", metal=False, gflops=300.0)):
        assert "BLAS" not in [finding.check for finding in machine.device(system, Config())]


def test_doctor_counts_the_memory_of_a_card() -> None:
    """Not the machine's, which is apart from it."""
    _, memory, *_ = machine.device(probe(metal=False, memory_bytes=80 * GIB, working_set_bytes=80 * GIB), Config())
    assert memory.found.startswith("72.0 GiB for weights, prefixes and requests: 0.9 of the card's memory, 80.0")


def test_doctor_says_where_weights_cannot_be_wired() -> None:
    """On a Mac they can."""
    config = replace(Config(), wire_weights=True)
    assert list(machine.device(mac(), config))[3].found.startswith("on")
    assert list(machine.device(probe(metal=False), config))[3].verdict is Verdict.WARNING


def test_doctor_says_that_macos_14_wires_no_weights() -> None:
    """MLX takes the limit there, and nothing happens: Metal has no residency sets."""
    for release, verdict in (("14.7.8", Verdict.WARNING), ("15.0", Verdict.OK), ("26.1", Verdict.OK)):
        wired = list(machine.device(mac(sw_vers=release), Config(wire_weights=True)))[3]
        assert wired.verdict is verdict, release
    assert "macOS 15 or newer" in list(machine.device(mac(sw_vers="14.7.8"), Config(wire_weights=True)))[3].found


@pytest.mark.parametrize(
    ("device", "release", "verdict"),
    [
        ("gpu: Apple M5 Max", "26.0.1", Verdict.WARNING),
        ("gpu: Apple M5", "26.1", Verdict.WARNING),
        ("gpu: Apple M5 Max", "26.2", Verdict.OK),
        ("gpu: Apple M4 Max", "26.1", Verdict.OK),
        ("gpu: Apple M5", "15.7", Verdict.OK),
    ],
)
def test_doctor_warns_of_a_wheel_that_is_newer_than_the_system(device: str, release: str, verdict: Verdict) -> None:
    """Of MLX for macOS 26, which computes on an M5 with what came in 26.2."""
    system = mac(sw_vers=release, **{"daemon.engine.device": json.dumps(MAC_PROBE | {"device": device})})
    assert next(machine.device(system, Config())).verdict is verdict


@pytest.mark.parametrize(
    "system",
    [
        probe(metal=False, device="cpu"),
        probe(device="cpu"),
        probe(computes=False),
        Recorded(answers={}),
    ],
    ids=["no Metal", "on the CPU", "wrong sums", "a crash"],
)
def test_doctor_reports_a_mac_without_a_gpu(system: Recorded) -> None:
    """A Mac without a working GPU would be slow or wrong without a visible reason."""
    assert next(machine.device(system, Config())).verdict is Verdict.FAILED


def test_doctor_shows_how_to_see_why_mlx_cannot_be_loaded() -> None:
    """With the Python of the installation: `python` of a shell is mostly another one, and has no such module."""
    (finding,) = machine.device(Recorded(answers={}), Config())
    assert finding.fix.endswith(f"run: {shlex.quote(sys.executable)} -P -m daemon.engine.device")


def test_doctor_explains_a_cache_above_the_memory() -> None:
    """Budgets above the memory are no error: the caches get the memory that there is."""
    _, memory, *_ = machine.device(mac(), Config(model_cache_mb=60 * 1024))
    assert "together ask for 76.0 GiB, and share what there is" in memory.found
    assert "for weights, unless" not in memory.found


def test_doctor_needs_the_pressure_level_on_macs() -> None:
    """A Linux kernel can be built without pressure figures, a Mac's kernel always has them."""
    assert list(machine.device(probe(pressure=None), Config()))[2].verdict is Verdict.FAILED
    linux = replace(probe(pressure=None), platform="linux")
    assert list(machine.device(linux, Config()))[2].verdict is Verdict.SKIPPED


def test_doctor_checks_the_ttl_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock's name differs by system, and a build of Python can lack it."""
    assert machine.clock(mac()).verdict is Verdict.OK
    monkeypatch.delattr(time, "CLOCK_MONOTONIC_RAW")
    assert machine.clock(mac()).verdict is Verdict.WARNING


def test_doctor_reports_a_low_hard_file_limit() -> None:
    """The daemon raises the soft limit by itself, so only a low hard limit is reported."""
    assert machine.open_files(lambda _: (256, resource.RLIM_INFINITY)).verdict is Verdict.OK
    assert machine.open_files(lambda _: (256, 1024)).verdict is Verdict.WARNING
    assert machine.open_files(lambda _: (256, 1024)).found.endswith("; the daemon raises its own to 1024")
    assert machine.open_files(lambda _: (20000, resource.RLIM_INFINITY)).found == "soft limit 20000, hard limit none"
    assert process_setup.OPEN_FILES == OPEN_FILES


def answer(*logprobs: float, cached: int = 96, first: int = 1) -> Completion:
    tokens = tuple(range(first, first + len(logprobs)))
    pairs = tuple(TokenLogprob(token, logprob, ()) for token, logprob in zip(tokens, logprobs, strict=True))
    usage = replace(USAGE, prompt_tokens=100, cached_tokens=cached)
    return Completion("", tokens, pairs, "length", "", usage, TIMINGS, "r", "embedded")


COLD = answer(-0.5, -0.25, cached=0)


def test_doctor_trial_passes_equal_answers_with_reuse() -> None:
    """On a CPU, cold and warm answers are equal to the last bit."""
    found = trial.compare(COLD, answer(-0.5, -0.25), exact=True)
    assert (found.verdict, found.found[:28]) == (Verdict.OK, "96 of 100 tokens reused, the")


@pytest.mark.parametrize(
    ("cold", "warm", "exact", "verdict"),
    [
        (COLD, answer(-0.5, -0.2501), True, Verdict.FAILED),
        (COLD, answer(-0.5, -0.2501), False, Verdict.OK),
        (COLD, answer(-0.5, -0.5), False, Verdict.FAILED),
        (COLD, answer(-0.5, -0.25, first=2), False, Verdict.FAILED),
        (COLD, answer(-0.5, -0.25, cached=0), True, Verdict.FAILED),
        (answer(-0.5, -0.25), answer(-0.5, -0.25), True, Verdict.FAILED),
    ],
    ids=["last bits, CPU", "last bits, GPU", "more than bits", "other tokens", "nothing reused", "not cold"],
)
def test_doctor_trial_fails_without_equal_reuse(
    cold: Completion, warm: Completion, exact: bool, verdict: Verdict
) -> None:
    """The trial fails without reuse, because it would prove nothing."""
    assert trial.compare(cold, warm, exact=exact).verdict is verdict


def test_doctor_checks_the_wake_lock_of_a_mac() -> None:
    """The check reads pmset's list for the daemon's own caffeinate."""
    assert trial.awake(mac(), 4711).verdict is Verdict.OK
    assert trial.awake(mac(), 4712).verdict is Verdict.FAILED, "another process's caffeinate does not count"
    assert trial.awake(mac(pmset="nothing"), 4711).verdict is Verdict.FAILED
    display = ASSERTIONS.replace("02 PreventUserIdleSystemSleep", "02 PreventUserIdleDisplaySleep")
    assert trial.awake(mac(pmset=display), 4711).verdict is Verdict.FAILED
    assert trial.awake(replace(mac(), platform="linux"), 4711).verdict is Verdict.SKIPPED


def test_doctor_command_that_fails_has_no_output() -> None:
    """The result is None, and each check decides what that means."""
    system = System()
    assert system.run("echo", "hello") == "hello"
    assert system.run("false") is None
    assert system.run("no-such-program") is None
