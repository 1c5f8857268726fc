"""
The engine process: `python -m daemon.engine --fd N --config JSON`. Started by the supervisor, never by hand.

The main thread is the MLX thread. When the parent asks for the end or is gone, it ends, and the process with status 0.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

if __name__ == "__main__":
    from daemon.shared.group_signals import ignore_group_signals

    ignore_group_signals()  # an engine that ended by itself would cut off the streams that may still run
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

# Before any library reads it: requests are tokenised one at a time, and the tokenizer's threads would compete with MLX.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from daemon.shared.kept_out import kept_out

with kept_out("rich"):  # for tracebacks on a console, which show local variables
    import structlog

import mlx.core as mx

from daemon.engine.device import device_name
from daemon.engine.import_speed import short_imports
from daemon.engine.loop import Link, Loop
from daemon.shared import clocks, logs
from daemon.shared.config_sources import from_json
from daemon.shared.failpoints import failpoint
from daemon.shared.machine_faults import DeviceFailedError
from daemon.shared.observed_time import SeenTime
from daemon.shared.process_setup import limits_kept
from daemon.v1 import ipc_pb2 as ipc

if TYPE_CHECKING:
    from daemon.engine.engine import Engine

DRAIN_SECONDS = 1.0
COLLECT_ALL_SECONDS = 600.0
"""An idle engine looks for garbage among all objects so often."""
MOST_BETWEEN_BEATS = 3.0
"""Seconds. A heartbeat reads the clock each second; a longer gap means that no thread of this process ran meanwhile."""

log = structlog.get_logger()


def main() -> int:
    """Serve the parent until it is gone, and return the exit status."""
    arguments = _arguments()
    os.set_inheritable(arguments.fd, False)  # a child that inherits it would hide our end from the parent
    config = from_json(arguments.config)
    _harden()
    logs.configure(config.log_level, None)
    logs.take_over()
    seen = SeenTime(clocks.awake, MOST_BETWEEN_BEATS)
    loop = Loop(seen, IdleCollector(seen))
    engines: list[Engine] = []  # gets its one item later: the link is up before the engine is built
    link = Link(socket.socket(fileno=arguments.fd), loop, lambda: sum(engine.stuck for engine in engines))
    hello = partial(ipc.Hello, mlx_version=version("mlx"), mlx_lm_version=version("mlx-lm"), device=device_name())
    failpoint("engine.hello")
    link.start(ipc.Event(hello=hello(warming=True)))
    with limits_kept(), short_imports():  # only now: importing mlx-lm takes a second, and longer from a cold disk
        from daemon.engine.composition import build_engine
    from daemon.engine.memory.pressure import system_pressure

    if arguments.group is not None:
        from daemon.engine.group.start import Rank, start_of

        rank = Rank(start_of(arguments.group), config, link, seen, clocks.elapsed, system_pressure())
        rank.run(loop, lambda: link.send(ipc.Event(hello=hello())))
        return 0
    engine = build_engine(config, link, loop.post, seen, system_pressure(), clocks.elapsed)
    engines.append(engine)
    link.send(ipc.Event(hello=hello()))
    link.flush()
    try:
        loop.run(engine)
    except (Exception, DeviceFailedError):
        log.exception("engine_loop_failed")
        return 1
    finally:
        engine.close()
        link.flush()
        link.drain(DRAIN_SECONDS)
        # Without this, mlx aborts the process at exit with status 134 (seen with 0.32.4 on Linux).
        mx.clear_streams()
    return 0


class IdleCollector:
    """
    Collects garbage while the engine is idle, and leaves the survivors out of later collections.

    Most survivors are modules and the index of the prefix cache, which stay. Going through them takes 50 ms; without
    this, that happens in the middle of streams. Others are dropped later, and some of these refer to themselves, as
    tokenizers do: only a collection frees them. So now and then one goes through all.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_of_all = clock()

    def __call__(self) -> None:
        """Collect garbage."""
        now = self._clock()
        if now - self._last_of_all >= COLLECT_ALL_SECONDS:
            self._last_of_all = now
            gc.unfreeze()
        gc.collect()
        gc.freeze()


def _harden() -> None:
    """Leave no core file with prompts in it, and show where a crash happened."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mlx-sidecar engine", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="this process's end of the socket pair")
    parser.add_argument("--group", type=int, help="pipe with the place in a group, for a rank of one")
    parser.add_argument("--config", required=True, help="configuration as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # a usual exit would wait for threads of pools, for example until a download ends
