"""The clients of a chaos run: some read to the end, some cancel, some are slow, some die, some send garbage."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import grpc

from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub
from tests.chaos.asks import Ask
from tests.chaos.calls import CHANNEL, ending
from tests.chaos.history import CUT, OK, History, Invalidation, Stream
from tests.chaos.world import World
from tests.support.daemons import wait_until

SALTS = ["", "a", "b"]
CALL_SECONDS = 60.0


@dataclass(slots=True)
class Client:
    """
    One client: does one random thing after another until it is told to stop.

    Attributes:
        asks: What it may ask for.
        stop: Set when the run is over.
    """

    world: World
    history: History
    asks: list[Ask]
    rng: random.Random
    stop: threading.Event

    def run(self) -> None:
        """Go on until the run is over."""
        habits: list[tuple[int, Callable[[SidecarServiceStub], None]]] = [
            (50, self._read),
            (20, self._cancel),
            (8, self._read_slowly),
            (6, self._invalidate),
            (5, self._send_nonsense),
            (5, self._write_garbage),
            (6, self._die),
        ]
        weights = [weight for weight, _ in habits]
        with grpc.insecure_channel(f"unix:{self.world.socket}", options=CHANNEL) as channel:
            stub = SidecarServiceStub(channel)
            while not self.stop.is_set():
                ((_, habit),) = self.rng.choices(habits, weights)
                habit(stub)

    def read_until_one_is_whole(self, stub: SidecarServiceStub) -> None:
        """Read streams until one arrives whole: after all that happened, the daemon serves."""

        def whole() -> bool:
            self.world.mend()  # the last one may have a failpoint that kills it only now
            self._read(stub)
            return self.history.streams[-1].ends == [OK]

        wait_until(whole, "a stream arrives whole")

    def _begin(self) -> Stream:
        # Some are asked for often, so that they are used again in the short life of a daemon and written to the disk.
        often = self.rng.random() < 0.5
        ask, salt = self.rng.choice(self.asks[:2] if often else self.asks), "" if often else self.rng.choice(SALTS)
        return self.history.begin(replace(ask, salt=salt, bypass=self.rng.random() < 0.1))

    def _read(self, stub: SidecarServiceStub, pause: float = 0.0, most: int = 1 << 30) -> None:
        """Read a stream, to its end or for so many events."""
        stream = self._begin()
        call = stub.Generate(stream.ask.request(), timeout=CALL_SECONDS)
        try:
            for event in call:
                stream.add(event)
                if len(stream.events) >= most:
                    call.cancel()
                    stream.end(CUT)
                    return
                if pause:
                    self.stop.wait(pause)
            stream.end(OK)
        except grpc.RpcError:
            stream.end(ending(call))
            self._after(stream.ends[-1], stub)

    def _after(self, end: str, stub: SidecarServiceStub) -> None:
        """Do what a person would do who is told that the model is quarantined; else wait a little."""
        if "QUARANTINED" in end:
            self._invalidate_by(stub, pb.InvalidateRequest(all=pb.AllTarget(weights=True, prefixes=True)))
        else:
            self.stop.wait(self.rng.random() * (1.0 if end == "UNAVAILABLE" else 0.2))

    def _cancel(self, stub: SidecarServiceStub) -> None:
        self._read(stub, most=self.rng.choice([1, 1, 2, 5, 20]))

    def _read_slowly(self, stub: SidecarServiceStub) -> None:
        self._read(stub, pause=self.rng.random() / 20)

    def _invalidate(self, stub: SidecarServiceStub) -> None:
        ask = self.rng.choice(self.asks)
        prefix, salt = ask.prompt[: self.rng.randint(1, len(ask.prompt))], self.rng.choice(SALTS)
        target = pb.PrefixTarget(model=ask.model, tokens=pb.TokenIds(ids=prefix), salt=salt)
        weights = self.rng.random() < 0.5
        model = pb.ModelTarget(model=ask.model, weights=weights, prefixes=True)
        choices = [
            pb.InvalidateRequest(prefix=target),
            pb.InvalidateRequest(model=model),
            pb.InvalidateRequest(all=pb.AllTarget(weights=weights, prefixes=True)),
        ]
        self._invalidate_by(stub, self.rng.choices(choices, [6, 3, 1])[0])

    def _invalidate_by(self, stub: SidecarServiceStub, request: pb.InvalidateRequest) -> None:
        called = time.monotonic()
        try:
            stub.Invalidate(request, timeout=CALL_SECONDS)
        except grpc.RpcError:
            return  # it may or may not have happened, and promises nothing
        kind = request.WhichOneof("target")
        prefix, returned = request.prefix, time.monotonic()
        done = {
            "prefix": Invalidation(called, returned, prefix.model, prefix.salt, tuple(prefix.tokens.ids)),
            "model": Invalidation(called, returned, request.model.model),
            "all": Invalidation(called, returned),
        }
        self.history.invalidations.append(done[str(kind)])

    def _send_nonsense(self, stub: SidecarServiceStub) -> None:
        """A request that is wrong is refused by its field, or fails as others do now; never UNKNOWN or INTERNAL."""
        model = self.asks[0].model
        wrong = self.rng.choice(
            [
                pb.GenerateRequest(),
                pb.GenerateRequest(model=model, text="a", max_tokens=-1),
                pb.GenerateRequest(model=model, tokens=pb.TokenIds(ids=[2**32 - 1])),
                pb.GenerateRequest(model=model, text="a", sampling=pb.Sampling(temperature=float("nan"))),
                pb.GenerateRequest(model="../../etc", text="a"),
                pb.GenerateRequest(model=model, tokens=pb.TokenIds(ids=[20] * 100_000)),
            ]
        )
        call = stub.Generate(wrong, timeout=CALL_SECONDS)
        try:
            events = list(call)
        except grpc.RpcError:
            if call.code().name in ("UNKNOWN", "INTERNAL"):
                self.history.notes.append(f"nonsense got {ending(call)}: {call.details()}")
        else:
            self.history.notes.append(f"nonsense was answered with {events}")

    def _write_garbage(self, _stub: SidecarServiceStub) -> None:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(2)
            try:
                raw.connect(str(self.world.socket))
                preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" * self.rng.randint(0, 1)
                raw.sendall(preface + self.rng.randbytes(self.rng.choice([1, 100, 100_000])))
                raw.recv(1000)
            except OSError:
                return  # nobody listens just now, or it hung up on us: both are fine

    def _die(self, _stub: SidecarServiceStub) -> None:
        """Be killed in the middle of a stream, or be stopped for a while and then go on."""
        stream = self._begin()
        command = [sys.executable, "-m", "tests.chaos.reader", str(self.world.socket)]
        with subprocess.Popen(
            [*command, stream.ask.request().SerializeToString().hex()], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            turn, kills = self.rng.choice([1, 3, 10, 30]), self.rng.random() < 0.6
            for number, line in enumerate(process.stdout, 1):
                if number == turn and kills:
                    process.kill()
                elif number == turn:
                    process.send_signal(signal.SIGSTOP)
                    self.stop.wait(self.rng.random() * 2)
                    process.send_signal(signal.SIGCONT)
                if line.startswith("end "):
                    stream.end(line.removeprefix("end ").strip())
                elif line.endswith("\n"):
                    stream.add(pb.GenerateResponse.FromString(bytes.fromhex(line.strip())))
        if process.returncode and not stream.ends:
            stream.end(CUT)
