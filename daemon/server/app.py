"""The daemon process: puts its parts together, serves until a signal, drains, and cleans up."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

# gRPC's fork handlers can hang a process that starts others; this process never forks. gRPC reads it when imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import structlog

from daemon import __version__
from daemon.kv.disk.note import Note
from daemon.server.admission import Admission
from daemon.server.call_record import CallRecord
from daemon.server.callers import Callers
from daemon.server.disk_thread import on_thread
from daemon.server.group.routes import Routes
from daemon.server.peers import Peers, this_system
from daemon.server.singleton import InstanceLock, PublishedSocket, private_name
from daemon.server.socket_path import prepare_socket_path
from daemon.server.stats import History, Stats
from daemon.server.supervision.call_router import CallRouter
from daemon.server.supervision.engine_process import engine_command
from daemon.server.supervision.http_door import HttpDoor
from daemon.server.supervision.supervisor import State, Supervisor
from daemon.server.wake_lock import Wakefulness, WakeLock, system_wake_lock
from daemon.shared import clocks, logs, observed_time, process_setup
from daemon.shared.config import Config, ConfigError
from daemon.shared.distributions import Program
from daemon.shared.failpoints import failpoint
from daemon.shared.log_fields import cause

if TYPE_CHECKING:
    from daemon.server.group.group import Group
    from daemon.server.grpc_server import Server

ORPHAN_SECONDS = 3.0
"""Wait for the engine of a killed daemon, which exits within two seconds after its parent."""
ENGINE_STOP_SECONDS = 3.0
"""Time of the engine to exit; then it is killed."""
SERVER_STOP_SECONDS = 1.0
"""Time in which the errors of calls that were cut off reach their clients."""
SOCKET_CHECK_SECONDS = 2.0
"""Between two looks whether the socket is still there."""
LOOKS_FOR_LIFE = 30
"""Such looks between two signs of life, each of which writes to the disk."""

log = structlog.get_logger()


def run(config: Config, engine: Sequence[str] | None = None, wake_lock: WakeLock | None = None) -> int:
    """
    Serve until SIGTERM or SIGINT, and return the exit status. SIGHUP reopens the log file; on a terminal it ends.

    Args:
        config: The configuration.
        engine: Command line of the engine, without `--fd N`; None for the real engine.
        wake_lock: Keeps the machine awake while calls run; None for the lock of this operating system.

    Raises:
        SocketPathError: If the socket cannot be made where it should be.
        AlreadyRunning: If another daemon serves the socket.
        ConfigError: If tracing is on and spans cannot be sent, or if a limit of this process is too low.
    """
    if config.group_models and not config.group_ranks:
        raise ConfigError("group_models is set, but group_ranks is not; set it to the addresses of the machines.")
    _set_up_process()
    logs.configure(config.log_level, None)
    prepare_socket_path(config.socket)
    with InstanceLock.acquire(config.socket, ORPHAN_SECONDS) as lock:
        # The engine inherits this copy, so that the lock lives as long as any process holds the models' memory.
        inherited = lock.inheritable_copy()
        failpoint("lock.taken")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold prompts; all our processes inherit it
        os.chdir("/")  # an engine cannot start in a directory that was deleted meanwhile
        logs.take_over()
        # Only now: a daemon that is refused must not touch the log file of the running daemon.
        logs.configure(config.log_level, config.log_file)
        if lock.unclean_end is not None:
            log.warning("unclean_shutdown", **lock.unclean_end._asdict())
        if lock.orphan is not None:
            log.warning("orphaned_engine_killed", pid=lock.orphan)
        if (instead := process_setup.settle_temporary_directory()) is not None:
            log.warning("tmpdir_replaced", directory=instead)
        try:
            with _spans(config) as on_end:
                daemon = Daemon(config, engine, wake_lock, on_end, partial(note_engine, lock), lock.note_life)
                return asyncio.run(daemon.serve())
        finally:
            os.close(inherited)


def note_engine(lock: InstanceLock, pid: int) -> None:
    """Note the process of a new engine. A full disk is no reason to go without one."""
    try:
        lock.note_engine(pid)
    except OSError as error:
        log.warning("lock_file_unwritable", error=cause(error))


def _set_up_process() -> None:
    """Set up descriptors, signals, limits and places. Raises ConfigError if a limit is too low."""
    process_setup.hold_standard_streams()
    process_setup.ignore_stray_signals()
    process_setup.allow_connections()
    process_setup.settle_places()
    process_setup.check_limits()


@contextmanager
def _spans(config: Config) -> Iterator[Callable[[CallRecord], None]]:
    """Yield the function that gets each call that ended: an OpenTelemetry tracer, or nothing where tracing is off."""
    if not config.tracing:
        yield lambda _: None
        return
    try:
        from daemon.server.tracing import CallTracer
    except ModuleNotFoundError:
        raise ConfigError(
            'tracing is on, but OpenTelemetry is not installed; set tracing to false, or install the extra "otel": '
            "in a checkout, run: uv tool install -c daemon/constraints.txt '.[otel]'"
        ) from None
    tracer = CallTracer.from_environment(os.environ)
    try:
        yield tracer.record
    finally:
        tracer.close()


def _later(delay: float, action: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay, action)


def _group(config: Config) -> Group | None:
    """Return the group of machines, if the configuration has one; its modules are imported for that alone."""
    if not config.group_ranks:
        return None
    from daemon.server.group.group import Group

    return Group(config)


def note_for_later_group(config: Config) -> Callable[[], Awaitable[None]]:
    """
    Return the function that notes on the disk that prefixes were invalidated, for a daemon without a group.

    A group that this machine was part of may have left prefixes there. A later group drops them by the note.
    """
    folder = config.kv_disk_group_folder
    note = Note(config.state_dir, folder)

    def write() -> None:
        if folder.exists():
            note.write()

    return lambda: on_thread(write)


class Daemon:
    """
    One daemon on one socket. The caller holds the lock of the socket.

    Args:
        config: Its configuration.
        engine: Command line of its engine; None for the real engine.
        wake_lock: Keeps the machine awake while calls run; None for the lock of this operating system.
        on_end: Called with each call that ends.
        on_spawn: Called with the process id of each new engine.
        on_life: Called once a minute while it serves.
    """

    def __init__(
        self,
        config: Config,
        engine: Sequence[str] | None = None,
        wake_lock: WakeLock | None = None,
        on_end: Callable[[CallRecord], None] = lambda _: None,
        on_spawn: Callable[[int], None] = lambda _: None,
        on_life: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._on_life = on_life
        self._on_end = on_end
        self._idle = asyncio.Event()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._status = 0
        self._program = Program()
        command = engine or engine_command(config.to_json())
        self._wakefulness = Wakefulness(wake_lock or system_wake_lock(), _later)
        self._admission = Admission(
            config.max_queue,
            self._became_idle,
            self._wakefulness.busy,
            most_of_program=config.most_waiting_of_program,
        )
        self._callers = Callers(Peers(private_name(config.socket), this_system()).connected)
        history = History(clocks.elapsed, self._admission)
        self._router = CallRouter(clocks.awake, history.note)
        self._supervisor = Supervisor(command, clocks.awake, self._router, self._engine_changed, on_spawn)
        self._group = _group(config)
        self._door = HttpDoor(config, clocks.awake)
        self._stats = Stats(
            self._supervisor, self._router, self._admission, self._callers, history, clocks.elapsed, self._door.stats,
            self._group.fill if self._group else lambda _: None,
        )  # fmt: skip
        self._server: Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Serve until told to stop, and return the exit status."""
        self._handle_signals()
        self._supervisor.start()
        if self._group is not None:
            self._group.supervisor.start()
        socket = PublishedSocket(self._config.socket)
        try:
            server = await self._start_server(socket)
            log.info(
                "serving",
                socket=str(self._config.socket),
                version=__version__,
                pid=os.getpid(),
                python=sys.version.split()[0],
            )
            self._door.start()
            self._spawn(self._guard(socket))
            await self._stop.wait()
            await self._drain()
            # First, so that calls that still come get a reason and a time to retry; gRPC's own stop says CANCELLED.
            await self._stop_engines()
            await server.stop(SERVER_STOP_SECONDS)
            await self._door.stop()  # last, so that it passes on how its calls ended
        finally:
            for task in self._tasks:
                task.cancel()
            self._wakefulness.close()
            await self._door.stop()
            await self._stop_engines()
            socket.remove()
        log.info("stopped", status=self._status)
        return self._status

    async def _stop_engines(self) -> None:
        """End the engines; harmless twice."""
        supervisors = [self._supervisor, *([self._group.supervisor] if self._group else [])]
        await asyncio.gather(*(supervisor.stop(ENGINE_STOP_SECONDS) for supervisor in supervisors))

    async def _start_server(self, socket: PublishedSocket) -> Server:
        await self._supervisor.spawned()
        # Only now: while gRPC is imported, the engine, which takes longer to start, loads its libraries.
        from daemon.server.grpc_server import Server

        aliases = self._config.aliases
        routes = Routes(self._router, aliases=aliases, note=note_for_later_group(self._config))
        if self._group is not None:
            group = self._group
            routes = Routes(
                self._router, group.router, self._config.group_models, aliases, group.note_invalidated, group.stored
            )
        server = Server(routes, self._admission, self._callers, self._stats, self._cancelled, self._on_end, aliases)
        self._server = server
        await server.start(socket, serving=self._supervisor.serves)
        failpoint("socket.bound")
        socket.publish()
        failpoint("socket.published")
        return server

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._asked_to_stop)
        logs.reopen_on_hangup(loop, self._config.log_level, self._config.log_file, self._asked_to_stop)

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            log.warning("drain_skipped")
            self._stop_now.set()
        self._stop.set()

    async def _drain(self) -> None:
        """Refuse new work and let running calls end, for as long as the configuration allows."""
        failpoint("drain.begun")
        log.info("draining", calls=self._admission.active, limit_s=self._config.drain_timeout)
        self._stats.draining = True
        if self._server is not None:
            self._server.drain()
        self._idle.clear()
        self._admission.close()
        if not self._admission.active:
            return
        ends = [asyncio.create_task(event.wait()) for event in (self._idle, self._stop_now)]
        await observed_time.wait(ends, self._config.drain_timeout, asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if self._admission.active:
            log.warning("drain_limit_reached", calls=self._admission.active)
            self._admission.cut_off()

    async def _guard(self, socket: PublishedSocket) -> None:
        """Stop with exit status 1 if the socket was removed or replaced, so that launchd starts a new daemon."""
        looks = count()
        while socket.is_ours():
            if next(looks) % LOOKS_FOR_LIFE == 0:
                self._on_life()
            await asyncio.sleep(SOCKET_CHECK_SECONDS)
        log.error("socket_lost", socket=str(socket.public))
        self._status = 1
        self._stop.set()

    def _engine_changed(self, state: State) -> None:
        log.info("engine_state_changed", **self._supervisor.log_fields)
        if state in (State.RESTARTING, State.STARTING):  # at its start again: the pause before it may be a minute
            self._end_if_replaced()
        if self._server is not None and not self._stop.is_set():
            self._server.set_health(serving=self._supervisor.serves)

    def _end_if_replaced(self) -> None:
        """Stop with exit status 1 after an upgrade: the next engine would be of another version than this process."""
        version = self._program.replaced_by()
        if version is not None and not self._stop.is_set():
            log.error("program_replaced", **({"version": version} if version else {}))
            self._status = 1
            self._stop_now.set()  # no engine is left that could end its calls
            self._stop.set()

    def _became_idle(self) -> None:
        self._idle.set()
        self._wakefulness.idle()

    def _cancelled(self) -> None:
        self._stats.cancelled += 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
