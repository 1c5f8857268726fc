"""Starts an engine process as a rank of a group: it inherits its connections, and reads its place from a pipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from daemon.server.group.handshake import Session
from daemon.server.supervision.engine_process import EngineProcess
from daemon.server.supervision.start_log import StartLog
from daemon.v1 import ipc_pb2 as ipc


async def spawn_rank(
    command: Sequence[str],
    rank: int,
    address: str,
    sessions: Sequence[Session],
    names: Sequence[str],
    starts: StartLog,
) -> EngineProcess:
    """
    Start an engine. The connections are closed here in any case.

    Args:
        command: Command line of the engine.
        rank: Its rank.
        address: The address that MLX's ring listens on.
        sessions: Its connections.
        names: The other side of each, for texts.
        starts: Decides which lines of its output are logged.

    Raises:
        OSError: If the process cannot be started.
    """
    with ExitStack() as held:
        start = ipc.GroupStart(rank=rank, address=address)
        for session, name in zip(sessions, names, strict=True):
            held.enter_context(session.connection)
            fd = session.connection.fileno()
            os.set_inheritable(fd, True)
            start.connections.add(fd=fd, up=session.up, down=session.down, name=name)
        reads, writes = os.pipe()
        held.callback(os.close, reads)
        with os.fdopen(writes, "wb") as pipe:
            pipe.write(start.SerializeToString())  # far less than a pipe holds, so that it does not block
        os.set_inheritable(reads, True)
        return await EngineProcess.spawn([*command, "--group", str(reads)], starts)
