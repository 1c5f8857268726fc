"""Makes an engine process a rank of a group: reads its place, joins the other ranks, and builds its engine."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, NoReturn

import mlx.core as mx
import structlog

from daemon.engine.composition import build_engine
from daemon.engine.device import memory_size, working_set
from daemon.engine.engine import Engine
from daemon.engine.group import backends
from daemon.engine.group.answers import FirstAnswers, RankAnswers
from daemon.engine.group.connection import Connection
from daemon.engine.group.digest import DigestingWire, NoWire
from daemon.engine.group.disk import least_wanted
from daemon.engine.group.lockstep import Lockstep
from daemon.engine.group.ranks import Ranks
from daemon.engine.group.sharding import Sharding
from daemon.engine.group.tape import Diverged, Player, Recorder, Tape
from daemon.engine.group.turns import Agreement, FirstRank, HeldWire, follow, listen
from daemon.engine.loop import Link, Loop
from daemon.engine.memory.memory_budget import group_share, memory_limit
from daemon.engine.memory.pressure import Level, Source
from daemon.kv.disk.limits import share
from daemon.shared import readings
from daemon.shared.config import Config
from daemon.shared.frames import FrameError
from daemon.shared.machine_faults import DeviceFailedError
from daemon.shared.model_names import plain
from daemon.v1 import ipc_pb2 as ipc

_SETTINGS = (
    "max_models", "model_ttl", "evict_on_memory_pressure", "kv_cache_mb", "max_cache_blocks", "min_prefix_len",
    "warmup_tokens", "max_batch", "group_models", "kv_disk_mb",
)  # fmt: skip
"""Keys of the configuration that decisions depend on; each rank uses the values that the first tells."""
_KNOWN_SECONDS = 1.0
"""Time in which a connection notices that its other side is gone."""
_AUTO = -1
"""The budget of a disk tier that the disk decides, as a rank tells it."""
GONE_STATUS = 3
"""Exit status of a rank when its group has ended."""

log = structlog.get_logger()


def told_settings(config: Config) -> str:
    """Return the settings that the first rank tells the others, as JSON."""
    values = asdict(config)
    values["group_models"] = {plain(config.aliases.get(name, name)): how for name, how in config.group_models.items()}
    return json.dumps({key: values[key] for key in _SETTINGS})


def settings_of(told: str) -> dict[str, Any]:
    """Return the settings that a rank uses of those that it was told: no folder of this machine can be among them."""
    return {key: value for key, value in json.loads(told).items() if key in _SETTINGS}


def start_of(fd: int) -> ipc.GroupStart:
    """Read the place in the group from the pipe that the parent wrote it to."""
    with os.fdopen(fd, "rb") as pipe:
        return ipc.GroupStart.FromString(pipe.read())


class Rank:
    """
    This process's rank, from its start to its end. All methods run on the MLX thread.

    Args:
        start: Its place.
        config: This machine's configuration.
        link: The way to the parent.
        clock: Seconds that never go back.
        ttl_clock: The same, with the machine's sleep.
        pressure: The memory pressure of this machine.
    """

    def __init__(
        self,
        start: ipc.GroupStart,
        config: Config,
        link: Link,
        clock: Callable[[], float],
        ttl_clock: Callable[[], float],
        pressure: Source,
    ) -> None:
        self._rank = start.rank
        self._address = start.address
        self._link = link
        self._clock = clock
        self._ttl_clock = ttl_clock
        self._pressure = pressure
        self._ending = threading.Lock()
        self._others = [Connection(given, leads=not start.rank, ended=self.give_up) for given in start.connections]
        for other in self._others:
            other.start()
        limit = group_share(memory_limit(working_set()), config, leads=not start.rank)
        self._config = config
        self._setup = self._agreed(limit)
        self._group = backends.join(self._setup, self._rank)

    def run(self, loop: Loop, ready: Callable[[], None]) -> None:
        """Serve until the parent ends this rank, or the group ends; `ready` is called once it takes calls."""
        try:
            if self._rank:
                self._follow(ready)
            else:
                self._lead(loop, ready)
        except (Diverged, FrameError) as error:
            log.exception("group_diverged")
            self.give_up(str(error))
        except (Exception, DeviceFailedError):
            log.exception("engine_loop_failed")
            threading.Event().wait(_KNOWN_SECONDS)  # MLX may have lost a rank, and its connection tells which
            self.give_up(f"rank {self._rank} failed; its log has the error")

    def give_up(self, why: str) -> NoReturn:
        """End this process, because the group cannot go on; any thread."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread ends the process
        log.error("group_ended", rank=self._rank)
        for other in self._others:
            other.say(why)
        self._link.send(ipc.Event(group_end=why))
        self._link.flush()
        self._link.drain(1.0)
        os._exit(GONE_STATUS)

    def _diverged(self, why: str) -> None:
        log.error("group_diverged")
        self.give_up(why)

    def _lead(self, loop: Loop, ready: Callable[[], None]) -> None:
        agreement = Agreement(self._others, self._diverged)
        tape = Recorder(self._others)
        tape.start()
        ranks: list[FirstRank] = []  # gets its one item later: results come before the engine is built
        answers = FirstAnswers(self._others, lambda outcome: loop.post(lambda: ranks[0].act(outcome)), self._diverged)
        lockstep = Lockstep(lambda: tape.place, self._others, self._clock, self.give_up)
        for number, other in enumerate(self._others, start=1):
            threading.Thread(target=listen, args=(number, other, answers, agreement, lockstep), daemon=True).start()
        wire = DigestingWire(HeldWire(self._link, agreement), self.give_up)
        engine = self._built(tape, wire, answers, loop.post, lambda what: lockstep.trouble("rank 0", what))
        ranks.append(FirstRank(engine, tape, answers, agreement, wire))
        self._meet()
        threading.Thread(target=lockstep.watch, name="group-lockstep", daemon=True).start()
        ready()
        self._link.flush()
        loop.run(ranks[0])
        for other in self._others:
            other.finish()
        engine.close()

    def _follow(self, ready: Callable[[], None]) -> None:
        (first,) = self._others
        tape = Player(first)
        answers = RankAnswers(lambda outcome: first.send(ipc.GroupFrame(ready=outcome)))
        wire = DigestingWire(NoWire(), self.give_up)
        first.own_place = lambda: tape.place
        engine = self._built(tape, wire, answers, _dropped, lambda what: first.send(ipc.GroupFrame(trouble=what)))
        self._meet()
        ready()
        self._link.flush()
        follow(engine, tape, first, answers, wire)

    def _meet(self) -> None:
        """Wait for all ranks: a rank that is still being built would be taken to be silent."""
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=self._group))
        for other in self._others:
            other.settled()

    def _built(
        self,
        tape: Tape,
        wire: DigestingWire,
        answers: RankAnswers,
        post: Callable[[Callable[[], None]], None],
        trouble: Callable[[str], None],
    ) -> Engine:
        readings.replace(tape.agreed, tape.flush)
        setup = self._setup
        settings = settings_of(setup.settings)
        ranks = Ranks(
            rank=self._rank,
            count=len(setup.ring),
            limit_bytes=setup.limit_bytes,
            memory_bytes=setup.memory_bytes,
            answers=answers,
            own_clock=self._clock,
            aside=tape.aside,
            shard=Sharding(self._group, settings["group_models"], trouble),
            wall=tape.reader(time.time),
        )
        folder = self._config.kv_disk_group_folder
        weights = setup.limit_bytes >> 20
        config = replace(self._config, **settings, model_cache_mb=weights, kv_disk_dir=folder)
        tape.begin()
        try:
            return build_engine(
                config,
                wire,
                post,
                tape.reader(self._clock),
                lambda: Level(int(tape.agreed(self._pressure()))),
                tape.reader(self._ttl_clock),
                ranks=ranks,
            )
        finally:
            tape.end()
            tape.flush()

    def _agreed(self, limit: int) -> ipc.GroupSetup:
        """Exchange what the ranks are, and return what they have in common."""
        kv_disk_bytes = share(self._config.kv_disk_bytes, shared=not self._rank)
        member = ipc.GroupMember(
            limit_bytes=limit,
            memory_bytes=memory_size(),
            ring=_free_address(self._address),
            jaccl=backends.has_jaccl(),
            kv_disk_bytes=_AUTO if kv_disk_bytes is None else kv_disk_bytes,
        )
        if self._rank:
            (first,) = self._others
            first.send(ipc.GroupFrame(member=member))
            return first.receive().setup
        members = [member, *(other.receive().member for other in self._others)]
        setup = ipc.GroupSetup(
            ring=[each.ring for each in members],
            limit_bytes=min(each.limit_bytes for each in members),
            memory_bytes=min(each.memory_bytes for each in members),
            settings=told_settings(replace(self._config, kv_disk_mb=self._kv_disk_mb(members))),
            devices=self._devices(members),
        )
        for other in self._others:
            other.send(ipc.GroupFrame(setup=setup))
        return setup

    def _kv_disk_mb(self, members: Sequence[ipc.GroupMember]) -> int | Literal["auto"]:
        """Return the budget of each rank's disk tier, in MiB: the smallest of all."""
        wanted = [None if member.kv_disk_bytes == _AUTO else member.kv_disk_bytes for member in members]
        for rank, nbytes in enumerate(wanted):
            if nbytes == 0 and any(each != 0 for each in wanted):
                log.warning("group_kv_disk_off", rank=rank)
        least = least_wanted(wanted)
        return "auto" if least is None else least >> 20

    def _devices(self, members: Sequence[ipc.GroupMember]) -> str:
        """Return the devices by which the ranks are joined; empty for MLX's ring."""
        try:
            return backends.chosen(self._config.group_backend, self._config.group_devices, members)
        except backends.BackendError as error:
            self.give_up(str(error))


def _free_address(address: str) -> str:
    """Return an address with a port that is free now. If it is taken meanwhile, the group starts anew with another."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, 0))
        return f"{address}:{probe.getsockname()[1]}"


def _dropped(action: Callable[[], None]) -> None:
    """Drop a report of progress: this rank answers no calls."""
