"""Runs two prompts with a common beginning through the engine in this process, without gRPC, and prints the reuse."""

import time

from daemon.cache.mlx.measurements import Measurements
from daemon.cache.mlx.self_tests import Verdicts
from daemon.engine.composition import build_engine
from daemon.engine.loop import Loop
from daemon.shared.config import Config
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

PROMPTS = ["colour red. animal cat. city paris. " * 12 + asked for asked in ("colour", "animal")]


class Wire:
    """Takes the engine's events in place of the socket to the parent: prints the end of a call, begins the next."""

    behind = False

    def send(self, event: ipc.Event) -> None:
        """Look at an event; `finished` and `failure` end a call."""
        if event.generate.HasField("finished") or event.HasField("failure"):
            usage = event.generate.finished.usage
            print(f"{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} reused {event.failure.message}")
            begin(event.call_id) if event.call_id < len(PROMPTS) else loop.stop()

    def flush(self) -> None:
        """Nothing waits."""


def begin(call: int) -> None:
    """Open the call of a prompt on the loop's thread, which is this one."""
    request = pb.GenerateRequest(model="embedded", text=PROMPTS[call], max_tokens=4)
    loop.post(lambda: engine.handle(ipc.Command(call_id=call + 1, generate=request)))


loop = Loop(time.monotonic)
engine = build_engine(Config(kv_disk_mb=0), Wire(), loop.post, time.monotonic, known=(Measurements(), Verdicts()))
begin(0)
loop.run(engine)
