"""The process of `mlx-sidecar join`: it listens for the first machine of a group, and runs an engine as its rank."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

from daemon import __version__
from daemon.server.group.handshake import SECONDS, Session, answer, joining_key
from daemon.server.group.probe import serve
from daemon.server.group.rank_process import spawn_rank
from daemon.server.supervision.engine_process import EngineProcess, engine_command
from daemon.server.supervision.start_log import StartLog
from daemon.server.wake_lock import WakeLock, system_wake_lock
from daemon.shared import logs, presence, process_setup
from daemon.shared.config import Config, ConfigError
from daemon.shared.group_values import address_of
from daemon.shared.log_fields import cause
from daemon.shared.log_pace import LogPace
from daemon.shared.ports import refuse_taken
from daemon.v1 import ipc_pb2 as ipc

STOP_SECONDS = 3.0
"""Time of the engine to exit; then it is killed."""
MOST_STRANGERS = 8
"""Connections at the same time that have not proven the key. One more, and the oldest of the busiest address ends."""
AGAIN_SECONDS = 1.0
"""Time after a connection that could not be taken: descriptors may have run out, or its caller was gone."""

log = structlog.get_logger()


def run(config: Config) -> int:
    """
    Join groups until SIGTERM or SIGINT, and return the exit status. SIGHUP reopens the log file; on a terminal it ends.

    Raises:
        ConfigError: If the address or the key is missing, or cannot be used, or another process joins by this state.
    """
    key = joining_key(config)
    process_setup.hold_standard_streams()
    process_setup.ignore_stray_signals()
    process_setup.allow_connections()
    process_setup.settle_places()
    process_setup.check_limits()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logs.configure(config.log_level, config.log_file)
    os.chdir("/")
    process_setup.settle_temporary_directory()
    return asyncio.run(Joiner(config, key).serve())


class Joiner:
    """
    Listens, and keeps the engine of the latest session. The machine does not go to sleep while that engine runs.

    Args:
        config: The configuration.
        key: The shared key.
        wake_lock: Keeps the machine awake; None for the lock of this operating system.
    """

    def __init__(self, config: Config, key: bytes, wake_lock: WakeLock | None = None) -> None:
        self._config = config
        self._key = key
        self._wake_lock = wake_lock or system_wake_lock()
        self._callers: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[Session], str] = {}
        """Handshakes, in the order in which they began, and the address of each."""
        self._engine: EngineProcess | None = None
        self._turn = asyncio.Lock()
        self._pace = LogPace(time.monotonic)
        self._starts = StartLog(time.monotonic)

    async def serve(self) -> int:
        """Serve until told to stop, and return the exit status."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop.set)
        logs.reopen_on_hangup(loop, self._config.log_level, self._config.log_file, stop.set)
        host, port = address_of(self._config.group_listen)
        try:
            refuse_taken(host, port)
            listener = socket.create_server((host, port))
        except OSError as error:
            text = f"group_listen {self._config.group_listen}: {error.strerror}"
            raise ConfigError(f"{text}; it has to be a free port of an address of this machine.") from None
        address = "{}:{}".format(*listener.getsockname())
        own = presence.Present(os.getpid(), __version__, address)
        with listener, _presence(self._config.state_dir / presence.NAME, own):
            listener.setblocking(False)
            log.info("group_listening", address=address)
            accepting = asyncio.create_task(self._accept(listener))
            await stop.wait()
            accepting.cancel()
        for caller in self._callers:
            caller.cancel()
        if self._engine is not None:
            await self._engine.stop(STOP_SECONDS)
        self._wake_lock.release()
        log.info("stopped", status=0)
        return 0

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, (host, _) = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:
                self._refused(error)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            task = asyncio.create_task(self._answer(connection, host))
            self._callers.add(task)
            task.add_done_callback(self._callers.discard)
            await asyncio.sleep(0)  # or callers that come without end would let no other task run
            self._make_room()

    def _make_room(self) -> None:
        """End a handshake if there are too many: a caller with the key needs no time, and strangers must not bar it."""
        if len(self._strangers) > MOST_STRANGERS:
            ((busiest, _),) = Counter(self._strangers.values()).most_common(1)
            oldest = next(stranger for stranger, host in self._strangers.items() if host == busiest)
            oldest.cancel()
            del self._strangers[oldest]

    async def _answer(self, connection: socket.socket, host: str) -> None:
        """Have a caller prove the key, and become a rank of its group instead of that of the one before."""
        proving = asyncio.create_task(self._proven(connection))
        self._strangers[proving] = host
        try:
            session = await proving
        except (OSError, TimeoutError, asyncio.CancelledError) as error:
            proving.cancel()
            connection.close()
            self._refused(error, address=host)
            return
        finally:
            self._strangers.pop(proving, None)
        if not session.greeting.ranks:
            with suppress(OSError, TimeoutError):
                await serve(session, self._config)
            return
        async with self._turn:
            if self._engine is not None:
                self._engine.kill()  # its group has ended, or the first rank would not call again
            rank = session.greeting.rank
            address, _ = address_of(self._config.group_listen)
            command = engine_command(self._config.to_json())
            self._starts.begin()
            try:
                self._engine = await spawn_rank(command, rank, address, [session], ["the first rank"], self._starts)
            except OSError as error:
                if starts := self._starts.ended(cause(error)):
                    log.error("engine_start_failed", error=cause(error), starts=starts)
                return
            if self._starts.due("group_joined"):
                log.info("group_joined", address=host, rank=rank, ranks=session.greeting.ranks)
            # The first machine gets the calls: its own system would take this one for idle in the middle of an answer.
            self._wake_lock.take()
            engine = self._engine
        await self._watch(engine)

    def _refused(self, error: BaseException, **where: str) -> None:
        """Log that a caller was refused, or could not be taken; a stranger can call without end."""
        if calls := self._pace.due(cause(error)):
            log.warning("group_caller_refused", error=cause(error), calls=calls, **where)

    async def _proven(self, connection: socket.socket) -> Session:
        async with asyncio.timeout(SECONDS):
            return await answer(connection, self._key)

    async def _watch(self, engine: EngineProcess) -> None:
        def note(event: ipc.Event) -> None:
            if _takes_calls(event):
                engine.redact()  # from now on the first rank tells it requests
            self._note(event)

        with suppress(asyncio.CancelledError):
            await engine.listen(note)
        status = await engine.reap()
        if starts := self._starts.ended(status):
            log.info("group_left", status=status, starts=starts)
        if self._engine is engine:
            self._engine = None
            self._wake_lock.release()

    def _note(self, event: ipc.Event) -> None:
        if _takes_calls(event):
            if failed := self._starts.serves():
                log.info("engine_starts_again", starts=failed)
        elif event.HasField("group_end"):
            log.warning("group_ended")


def _takes_calls(event: ipc.Event) -> bool:
    """Return whether an engine says that it takes calls now."""
    return event.HasField("hello") and not event.hello.warming


@contextmanager
def _presence(file: Path, own: presence.Present) -> Iterator[None]:
    """Hold the file by which this process is found until the block ends."""
    with ExitStack() as held:
        try:
            held.enter_context(presence.held(file)).listens(own)
        except presence.AlreadyPresent:
            raise ConfigError(
                f"Another mlx-sidecar join holds {file}; end it, or give this one another state_dir."
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{file} cannot be written ({error.strerror}); mend that, or give this process another state_dir."
            ) from None
        yield
