"""
The engine process: `python -m daemon.engine --fd N --config JSON`. Started by the supervisor, never by hand.

The main thread is the MLX thread. It ends, and the process with status 0, when the parent says so or is gone.
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
from functools import partial
from importlib.metadata import version

if __name__ == "__main__":
    # Before the slow imports: Ctrl-C, a closed terminal and the stop of a systemd unit reach all processes at once. The
    # parent handles them; an engine that ended by itself would cut off the streams that may still run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

# Before any library reads it: requests are tokenised one at a time, and a fork-happy pool would only compete with MLX.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import mlx.core as mx
import structlog

from daemon.engine.device import device_name
from daemon.engine.link import Link
from daemon.engine.loop import Loop
from daemon.shared import clocks, logs
from daemon.shared.config import Config
from daemon.shared.failpoints import failpoint
from daemon.shared.observed_time import SeenTime
from daemon.shared.process_setup import limits_kept
from daemon.v1 import ipc_pb2 as ipc

DRAIN_SECONDS = 1.0
MOST_BETWEEN_BEATS = 3.0
"""A heartbeat reads the clock each second. When it comes later than so, no thread of this process ran meanwhile."""

log = structlog.get_logger()


def main() -> int:
    """Serve the parent until it is gone, and return the exit status."""
    arguments = _arguments()
    os.set_inheritable(arguments.fd, False)  # while a process of ours had it, the parent would not see our end
    config = Config.from_json(arguments.config)
    _harden()
    logs.configure(config.log_level, None)
    logs.take_over()
    seen = SeenTime(clocks.awake, MOST_BETWEEN_BEATS)
    loop = Loop(seen, _settle)
    engines: list[Engine] = []  # of one, once it is there: the link is up before
    link = Link(
        socket.socket(fileno=arguments.fd),
        on_command=lambda command: loop.post(lambda: engine.handle(command)),
        on_end=loop.stop,
        pulse=lambda: (loop.steps, loop.step_age, sum(one.stuck for one in engines)),
    )
    hello = partial(ipc.Hello, mlx_version=version("mlx"), mlx_lm_version=version("mlx-lm"), device=device_name())
    failpoint("engine.hello")
    link.start(ipc.Event(hello=hello(warming=True)))
    with limits_kept():  # only now: mlx-lm and what it needs take a second, and longer from a cold disk
        from daemon.engine.engine import Engine
    from daemon.engine.memory.pressure import system_pressure

    engine = Engine(config, link, loop.post, seen, system_pressure(), clocks.elapsed)
    engines.append(engine)
    link.send(ipc.Event(hello=hello()))
    link.flush()
    try:
        loop.run(engine)
    except Exception:
        log.exception("the engine failed")
        return 1
    finally:
        engine.close()
        link.flush()
        link.drain(DRAIN_SECONDS)
        # Without this, mlx aborts the process at exit with status 134 (seen with 0.32.4 on Linux).
        mx.clear_streams()
    return 0


def _settle() -> None:
    """
    Collect garbage while nobody waits, and leave what survived out of later collections.

    Most of it is modules and the index of the prefix cache, which stay; going through them took 50 ms, in the middle of
    everybody's streams.
    """
    gc.collect()
    gc.freeze()


def _harden() -> None:
    """Leave no core file with prompts in it, and show where a crash happened."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mlx-sidecar engine", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="this process's end of the socket pair")
    parser.add_argument("--config", required=True, help="configuration as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # a usual exit would wait for pool threads, such as one in the middle of a download
