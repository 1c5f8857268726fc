"""Brings the ranks of a group together: calls each machine, and starts the first rank's engine once all answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.server.group.handshake import GroupError, Session, reach, read_key
from daemon.server.group.rank_process import spawn_rank
from daemon.server.supervision.engine_process import EngineProcess
from daemon.server.supervision.start_log import StartLog
from daemon.shared.config import Config


@dataclass(slots=True)
class RankState:
    """
    A rank, as Stats shows it.

    Attributes:
        address: Where it is called; of the first rank its own address.
        problem: Why it was not reached at the last try; empty if it was.
        versions: Its versions, once it was reached.
    """

    address: str
    problem: str = "was not called yet"
    versions: list[str] = field(default_factory=list)


class Rendezvous:
    """
    Starts engines of the first rank.

    Args:
        config: The configuration.
        command: Command line of the engine.

    Attributes:
        ranks: The ranks, and what is known of them.
    """

    def __init__(self, config: Config, command: Sequence[str]) -> None:
        self._config = config
        self._command = command
        own, *others = config.group_ranks
        self.ranks = [RankState(own, ""), *map(RankState, others)]

    async def spawn(self, starts: StartLog) -> EngineProcess:
        """
        Call all ranks, and start this machine's engine.

        Args:
            starts: Decides which lines of its output are logged.

        Raises:
            GroupError: If one cannot be reached, or cannot be part of this group.
            OSError: If the process cannot be started.
        """
        key = read_key(self._config.group_key_file)
        others = self.ranks[1:]
        results = await asyncio.gather(*(self._called(state, rank, key) for rank, state in enumerate(others, start=1)))
        sessions = [session for session in results if session is not None]
        if len(sessions) < len(others):
            for session in sessions:
                session.connection.close()
            missing = next(state for state in others if state.problem)
            raise GroupError(f"{missing.address} {missing.problem}")
        names = [f"rank {rank} ({state.address})" for rank, state in enumerate(others, start=1)]
        return await spawn_rank(self._command, 0, self.ranks[0].address, sessions, names, starts)

    async def _called(self, state: RankState, rank: int, key: bytes) -> Session | None:
        """Return a session with a rank; None if there is none, and the rank's state has the reason."""
        try:
            session = await reach(state.address, key, rank, len(self.ranks))
        except GroupError as error:
            state.problem = str(error)
            return None
        state.problem, state.versions = "", list(session.greeting.versions)
        return session
