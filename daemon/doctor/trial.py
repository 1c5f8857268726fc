"""
The trial: a separate daemon answers a prompt cold and warm, keeps the machine awake, and ends after SIGTERM.

The running daemon is only asked for its Stats. A trial there would add a load and two calls to its figures, could
evict a model in use, and would leave a prefix behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from daemon import __version__
from daemon.doctor.finding import Finding, Verdict, failed, ok, skipped, warning
from daemon.doctor.system import System
from daemon.shared.config import ENV_PREFIX
from daemon.shared.distributions import installed_at
from daemon.shared.observed_time import ended
from daemon.shared.wording import count
from mlx_sidecar import Client, Completion, DaemonNotRunning, DaemonStats, EngineStats, SidecarError, Stats

MODEL = "embedded"
PROMPT = list(range(5, 5 + 100))
"""Token ids. Their meaning is irrelevant: only the two answers are compared."""
ANSWER_TOKENS = 16
METAL_BOUND = 1e-2
"""Bound of the difference of log-probabilities on a GPU: its kernels depend on shapes. On a CPU it is zero."""
TIMEOUT_SECONDS = 120.0
STATS_SECONDS = 20.0
"""Longest wait for the figures of a running daemon, which its parent has at hand."""
RESTART = "run: mlx-sidecar service restart, or restart `mlx-sidecar serve`"
_LOG_NAME, _STDERR_NAME = "daemon.log", "daemon.stderr"


def trial(socket: Path, system: System) -> Iterator[Finding]:
    """Check the running daemon, if there is one; then start a separate daemon, try it and end it."""
    yield from running(socket)
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as folder, _daemon(Path(folder)) as process:
        written = _Log(Path(folder))
        for finding in _tried(Path(folder), process, system):
            yield written.kept_for(finding) if finding.verdict is Verdict.FAILED else finding


def running(socket: Path) -> Iterator[Finding]:
    """Check the daemon that listens on a socket; skipped if none does."""
    none = skipped("running daemon", f"none at {socket}")
    if not os.path.exists(socket):  # a client would wait for a daemon that is just starting
        yield none
        return
    try:
        with Client(socket, timeout=STATS_SECONDS) as client:
            stats = client.stats()
    except DaemonNotRunning:
        yield none
    except SidecarError as error:
        yield failed("running daemon", f"it gives no figures: {error}", f"see the end of its log; {RESTART}")
    else:
        yield same_program(stats.daemon)
        yield engine(stats.engine)
        yield from beside_the_engine(stats)


def same_program(running: DaemonStats, installed: Callable[[], float] = installed_at) -> Finding:
    """Compare the program that runs with the installed one: their versions, and which came first."""
    version = running.version
    if version != __version__:
        found = f"version {version}; this is {__version__}"
        return warning("running daemon", found, RESTART)
    if time.time() - (running.uptime or 0.0) < installed():
        return warning("running daemon", f"version {version}, started before this installation of it", RESTART)
    return ok("running daemon", f"version {version}")


def engine(stats: EngineStats) -> Finding:
    """Check that the running daemon's engine makes progress, and report its restarts."""
    again = f"restarted {stats.restarts} times" if stats.restarts != 1 else "restarted once"
    if stats.state == "stalled":
        advice = "the daemon kills and restarts it by itself; see its log for: engine_stuck_killed"
        step = f"a step of {stats.step_age:.0f} s" if stats.step_age else "no sign of life"
        return failed("engine", f"pid {stats.pid} is stalled: {step}; {again}", advice)
    if stats.state == "starting":
        return warning("engine", f"it is starting; {again}", "nothing, unless it goes on for minutes")
    if stats.state != "ready":
        return failed("engine", f"it is {stats.state}; {again}", "see the daemon's log for: engine_died")
    if stats.restarts:
        return warning("engine", f"pid {stats.pid}, ready, {again}", "see the daemon's log for: engine_died")
    return ok("engine", f"pid {stats.pid}, ready, never restarted")


def beside_the_engine(stats: Stats) -> Iterator[Finding]:
    """Check the rest of the running daemon: work that hangs, and the HTTP door and the group where it has them."""
    for work in stats.engine.stuck:
        found = f"{work.work} for {work.model} has given no sign of life for {work.silent or 0:.0f} s"
        yield failed("background work", found, "look at the disk or share of that model")
    http = stats.daemon.http
    if http.state == "serving":
        yield ok("http", f"it serves at {http.address}")
    elif http.restarts:
        found = f"it is {http.state}; started again {count(http.restarts, 'time')}"
        yield failed("http", found, "see the daemon's log for: http_start_failed, http_ended")
    if stats.group.problem:
        yield failed("group", stats.group.problem, "run: mlx-sidecar group status")


def _tried(folder: Path, process: subprocess.Popen[bytes], system: System) -> Iterator[Finding]:
    """Yield the findings of a trial. The last finding comes after the end of its daemon."""
    if (status := process.poll()) is not None:
        said = (folder / _STDERR_NAME).read_text("utf-8", "replace").strip().rpartition("\n")[2]
        yield failed("trial", f"its daemon ended with status {status} instead of serving: {said}", "mend what it names")
        return
    yield from _try(folder / "run" / "s.sock", system)
    process.send_signal(signal.SIGTERM)
    yield _ended(process)


class _Log:
    """
    What the daemon of a trial has written, for a reader after the trial: its folder is gone then.

    Args:
        folder: The folder of the trial.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copy: Path | None = None

    def kept_for(self, finding: Finding) -> Finding:
        """Copy what was written so far to a file that stays, and return the finding with the name of that file."""
        with suppress(OSError):  # a full disk; the finding counts more
            if self._copy is None:
                descriptor, name = tempfile.mkstemp(prefix="mlx-sidecar-doctor-", suffix=".log")
                os.close(descriptor)
                self._copy = Path(name)
            written = (self._folder / name for name in (_STDERR_NAME, _LOG_NAME))
            self._copy.write_bytes(b"".join(path.read_bytes() for path in written if path.exists()))
            return replace(finding, fix=f"{finding.fix}; the log of the trial is in {self._copy}")
        return finding


def _try(socket: Path, system: System) -> Iterator[Finding]:
    try:
        with Client(socket, timeout=TIMEOUT_SECONDS) as client:
            cold, warm = (
                client.complete(
                    MODEL,
                    PROMPT,
                    max_tokens=ANSWER_TOKENS,
                    ignore_eos=True,
                    top_logprobs=0,
                    timeout=TIMEOUT_SECONDS,
                )
                for _ in range(2)
            )
            daemon = client.stats().daemon
    except SidecarError as error:
        yield failed("warm equals cold", f"the daemon of this trial answers: {error}", "report this")
        return
    yield compare(cold, warm, exact=not daemon.device.startswith("gpu"))
    yield awake(system, daemon.pid)


def compare(cold: Completion, warm: Completion, *, exact: bool) -> Finding:
    """Compare the answer of a computed prompt with the answer of a restored prompt."""
    if cold.usage.cached_tokens or not warm.usage.cached_tokens:
        found = f"{cold.usage.cached_tokens} tokens cached in the first run, {warm.usage.cached_tokens} in the second"
        return failed("warm equals cold", found, "nothing is reused on this machine; report this")
    pairs = zip(cold.logprobs, warm.logprobs, strict=False)
    difference = max((abs(computed.logprob - restored.logprob) for computed, restored in pairs), default=0.0)
    found = f"{warm.usage.cached_tokens} of {warm.usage.prompt_tokens} tokens reused, "
    if cold.token_ids != warm.token_ids or difference > (0 if exact else METAL_BOUND):
        found += f"but log-probabilities differ by up to {difference:g}"
        return failed(
            "warm equals cold", found, "set kv_cache_mb = 0 and report this: restored prefixes are not exact here"
        )
    return ok("warm equals cold", found + f"the same tokens, log-probabilities within {difference:g}")


def awake(system: System, pid: int) -> Finding:
    """Check that the daemon, right after an answer, keeps a Mac from idle sleep but lets its display sleep."""
    if not system.is_mac:
        return skipped("sleep", "only a Mac is kept awake")
    helper = system.run("pgrep", "-P", str(pid), "-x", "caffeinate")
    if not helper:
        return failed("sleep", f"the daemon (pid {pid}) has no caffeinate", "the Mac may sleep during long answers")
    held = re.findall(
        rf"pid {helper}\(caffeinate\):.*?(\w+Sleep\w*) named", system.run("pmset", "-g", "assertions") or ""
    )
    if held != ["PreventUserIdleSystemSleep"]:
        found = f"caffeinate (pid {helper}) holds {', '.join(held) or 'nothing'}"
        return failed("sleep", found, "report this with the output of: pmset -g assertions")
    return ok("sleep", f"caffeinate (pid {helper}) keeps the Mac awake during calls; the display may sleep")


@contextmanager
def _daemon(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon with all of its files in a folder; it is ended after the block."""
    paths = {"SOCKET": folder / "run" / "s.sock", "STATE_DIR": folder, "LOG_FILE": folder / _LOG_NAME}
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    environ |= {ENV_PREFIX + name: str(path) for name, path in paths.items()}
    with open(folder / _STDERR_NAME, "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon", "serve"], env=environ, stdin=subprocess.DEVNULL, stderr=stderr
        )
    try:
        _await_socket(paths["SOCKET"], process)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _await_socket(socket: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the socket exists or the process has ended. The next call fails if it has ended."""
    while process.poll() is None and not socket.exists():
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


def _ended(process: subprocess.Popen[bytes]) -> Finding:
    if not ended(process, TIMEOUT_SECONDS):
        return failed("end", "the daemon does not end after SIGTERM", "report this")
    if status := process.returncode:
        return failed("end", f"the daemon ended with status {status}", "report this")
    return ok("end", "the daemon drained and ended with status 0")
