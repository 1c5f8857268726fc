"""The group as the daemon owns it: an engine process of its own beside that of this machine's models, and its calls."""

from __future__ import annotations

import structlog

from daemon.kv.disk.files import Files
from daemon.kv.disk.note import Note
from daemon.server.disk_thread import on_thread
from daemon.server.group.rendezvous import Rendezvous
from daemon.server.stats import STATES
from daemon.server.supervision.call_router import CallRouter, Send
from daemon.server.supervision.engine_process import engine_command
from daemon.server.supervision.supervisor import State, Supervisor
from daemon.shared import clocks
from daemon.shared.config import Config
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

LAST_BACKOFF = 5.0
"""Most seconds between two tries to bring the ranks together: another machine may come back at any time."""

log = structlog.get_logger()


class GroupRouter(CallRouter):
    """
    The way of calls to the group.

    Attributes:
        noted: Whether prefixes were invalidated since the last engine took calls. The next one may have looked at its
            disk before that was noted, so it is told.
    """

    noted = False

    def connect(self, send: Send) -> None:
        """Send what was noted, then what waits, to a new engine, and from now on each call at once."""
        if self.noted:
            self.noted = False
            request = pb.InvalidateRequest(all=pb.AllTarget(prefixes=True))
            # The answer is not read: if the engine dies first, the note is there still, or went with all pieces.
            send(ipc.Command(call_id=next(self._ids), invalidate=request))
        super().connect(send)


class Group:
    """
    A process of its own, so that the end of a rank leaves the models of this machine alone.

    Args:
        config: The configuration.

    Attributes:
        router: The way of calls to the group.
        supervisor: Keeps the first rank's engine running.
    """

    def __init__(self, config: Config) -> None:
        self._note = Note(config.state_dir, config.kv_disk_group_folder)
        self._files = (Files(config.kv_disk_folder), Files(config.kv_disk_group_folder))
        command = engine_command(config.to_json())
        self._rendezvous = Rendezvous(config, command)
        self.router = GroupRouter(clocks.awake)
        self.supervisor = Supervisor(
            command,
            clocks.awake,
            self.router,
            self._changed,
            spawn=self._rendezvous.spawn,
            last_backoff=LAST_BACKOFF,
        )
        self._logged: State | None = None

    def fill(self, answer: pb.StatsResponse) -> None:
        """Add the state of the group to that of the daemon."""
        group, snapshot = answer.group, self.router.snapshot
        group.state = STATES[self.supervisor.state]
        group.problem = self.router.problem
        for rank, state in enumerate(self._rendezvous.ranks):
            group.ranks.add(rank=rank, address=state.address, problem=state.problem, versions=state.versions)
        group.models.extend(snapshot.models)
        group.pid = self.supervisor.pid
        group.restarts = self.supervisor.restarts
        memory = snapshot.memory
        group.limit_bytes = memory.limit_bytes
        group.used_bytes = memory.weights_bytes + memory.trie_bytes + memory.live_kv_bytes
        group.decoding = snapshot.engine.decoding
        group.generated_tokens = snapshot.engine.generated_tokens
        disk = snapshot.prefix_cache
        group.disk_bytes, group.disk_budget_bytes = disk.disk_bytes, disk.disk_budget_bytes
        group.disk_tokens_reused, group.disk_faults = disk.disk_tokens_reused, disk.disk_faults

    async def note_invalidated(self) -> None:
        """
        Note that prefixes were invalidated while the ranks are away: they drop all that their disks have.

        Raises:
            OSError: If that cannot be noted.
        """
        await on_thread(self._note.write)
        self.router.noted = True

    async def stored(self, model: str, by_group: bool) -> bool:
        """Return whether the disk may have prefixes of a model that the group wrote, or this machine's engine alone."""
        return await on_thread(lambda: self._stored(model, self._files[by_group]))

    def _stored(self, model: str, files: Files) -> bool:
        try:
            return any(piece is not None and piece.model == model for _, piece, _ in files.look())
        except OSError:
            return True  # it may be readable when an engine opens it

    def _changed(self, state: State) -> None:
        # While a rank is away, a start is tried every few seconds: a night of that would push all else out of the log.
        if self._logged is State.RESTARTING and state in (State.STARTING, State.RESTARTING):
            return
        self._logged = state
        log.info("group_state_changed", **self.supervisor.log_fields)
