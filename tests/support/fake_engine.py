"""
An engine process without MLX, for tests of the parent: `python fake_engine.py --fd N [--config JSON]`.

It speaks the real frames, sends a heartbeat each 0.2 s, and lets the model's name decide what a call does:

* `ok`: a load reports progress and is ready; a completion repeats the prompt word by word. The prompt "hold" is
  answered with one delta, and then nothing until it is cancelled.
* `burst`: sends 10,000 deltas as fast as it can.
* `hold`: starts, sends one delta, and then nothing until it is cancelled; a load stays at its first progress.
* `hold-waiting`: accepts the prompt and never starts.
* `die`, `die2`, `die3`: exits with status 3 after `started` and one delta; a load after its first progress.
* `garbage`, `huge`: a frame of random bytes; the header of a frame of 4 GB.
* `silent`: stops the heartbeats. `stuck`: goes on with them, and tells of a step that began 1,000 s ago.
* `stuck-threads`: tells of 99 threads that hang.
* `fail`: fails with NAN_LOGITS. `mute`: does nothing.
* `log`: writes a log line, some bare text and a line of 3 MB, and then does as `ok`.

Any other name is MODEL_NOT_FOUND. A snapshot is sent before the end of each call. Each command is appended as a line
of JSON (`pid` and the message) to the file that MLX_SIDECAR_TEST_JOURNAL names. It exits with status 0 at the end of
the stream or at a shutdown, unless `--stubborn` makes it ignore the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

from google.protobuf.json_format import MessageToDict

from daemon.shared.durations import duration
from daemon.shared.frames import encode_frame
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

JOURNAL = "MLX_SIDECAR_TEST_JOURNAL"
HEARTBEAT_SECONDS = 0.2
BURST = 10_000
DEATH_STATUS = 3
DIES = ("die", "die2", "die3")
"""Names of the model that dies; a name of which the engine died three times is quarantined."""
_HEADER = struct.Struct(">I")


class FakeEngine:
    """
    One engine on one socket.

    Args:
        sock: This process's end of the socket pair.
        stubborn: Whether shutdowns are ignored.
        warm: A file for which it waits before it takes commands.
    """

    def __init__(self, sock: socket.socket, *, stubborn: bool, warm: Path | None = None) -> None:
        self._sock = sock
        self._warm = warm
        self._stubborn = stubborn
        self._sending = threading.Lock()
        self._quiet = threading.Event()
        self._step_age: float | None = None
        self._stuck = 0
        self._generated = 0
        self._loads = 0

    def run(self) -> None:
        """Answer commands until the parent is gone or says so."""
        hello = partial(ipc.Hello, mlx_version="0.0.1", mlx_lm_version="0.0.2", device="fake")
        if self._warm is not None:
            self._send(ipc.Event(hello=hello(warming=True)))
        threading.Thread(target=self._beat, daemon=True).start()
        while self._warm is not None and not self._warm.exists():
            time.sleep(0.005)
        self._send(ipc.Event(hello=hello()))
        while (command := self._receive()) is not None:
            _write_journal(command)
            kind = command.WhichOneof("body")
            if kind == "shutdown" and not self._stubborn:
                return
            if kind == "load":
                self._load(command.call_id, command.load)
            elif kind == "generate":
                self._generate(command.call_id, command.generate)
            elif kind == "invalidate":
                self._publish()
                self._send(ipc.Event(call_id=command.call_id, invalidate=pb.InvalidateResponse(blocks=1)))

    def _load(self, call_id: int, request: pb.GetOrLoadRequest) -> None:
        if self._misbehaves(call_id, request.model):
            return
        progress = pb.LoadProgress(stage=pb.LOAD_STAGE_LOADING, bytes_done=1, bytes_total=2)
        self._send(ipc.Event(call_id=call_id, load=pb.GetOrLoadResponse(progress=progress)))
        if request.model in DIES:
            os._exit(DEATH_STATUS)
        if request.model in ("hold", "hold-waiting"):
            return
        self._loads += 1
        info = pb.ModelInfo(model=request.model, size_bytes=2, outcome=pb.LOAD_OUTCOME_LOADED)
        self._publish()
        self._send(ipc.Event(call_id=call_id, load=pb.GetOrLoadResponse(ready=info)))

    def _generate(self, call_id: int, request: pb.GenerateRequest) -> None:
        if self._misbehaves(call_id, request.model):
            return
        prompt = _words(_text(request))
        self._send(ipc.Event(call_id=call_id, accepted=ipc.Accepted(prompt_tokens=len(prompt))))
        if request.model == "hold-waiting":
            return
        started = pb.Started(request_id=request.request_id, model=request.model, prompt_tokens=len(prompt))
        self._answer(call_id, pb.GenerateResponse(started=started))
        words = [f"{number} " for number in range(BURST)] if request.model == "burst" else prompt
        limit = request.max_tokens if request.HasField("max_tokens") else len(words)
        only_first = request.model == "hold" or request.model in DIES or prompt == ["hold"]
        for number, word in enumerate(words[: 1 if only_first else limit]):
            self._generated += 1
            self._answer(call_id, pb.GenerateResponse(delta=pb.Delta(text=word, token_ids=[number])))
        if request.model in DIES:
            os._exit(DEATH_STATUS)
        if not only_first:
            self._finish(call_id, len(prompt), len(words), limit)

    def _finish(self, call_id: int, prompt: int, words: int, limit: int) -> None:
        usage = pb.Usage(prompt_tokens=prompt, completion_tokens=min(words, limit))
        reason = pb.FINISH_REASON_LENGTH if limit < words else pb.FINISH_REASON_STOP
        self._publish()
        self._answer(call_id, pb.GenerateResponse(finished=pb.Finished(reason=reason, usage=usage)))

    def _misbehaves(self, call_id: int, model: str) -> bool:
        """Do what the bad models do, and tell whether this was one."""
        if model == "garbage":
            self._send_raw(_HEADER.pack(64) + b"\xff" * 64)
        elif model == "huge":
            self._send_raw(_HEADER.pack(2**32 - 1))
        elif model == "silent":
            self._quiet.set()
        elif model == "stuck":
            self._step_age = 1000.0
        elif model == "stuck-threads":
            self._stuck = 99
        elif model == "fail":
            self._fail(call_id, "NAN_LOGITS", "fail computed logits that are no numbers")
        elif model == "log":
            _log()
        elif model not in ("ok", "burst", "hold", "hold-waiting", "mute", *DIES):
            self._fail(call_id, "MODEL_NOT_FOUND", "there is no such model")
        return model not in ("ok", "burst", "hold", "hold-waiting", "log", *DIES)

    def _fail(self, call_id: int, reason: str, message: str) -> None:
        self._publish()
        self._send(ipc.Event(call_id=call_id, failure=ipc.Failure(reason=reason, message=message)))

    def _publish(self) -> None:
        figures = pb.StatsResponse()
        figures.model_cache.cached_models = self._loads
        figures.model_cache.max_models = 4
        figures.engine.generated_tokens = self._generated
        figures.memory.limit_bytes = 1 << 30
        self._send(ipc.Event(snapshot=figures))

    def _answer(self, call_id: int, event: pb.GenerateResponse) -> None:
        self._send(ipc.Event(call_id=call_id, generate=event))

    def _beat(self) -> None:
        steps = 0
        while not self._quiet.wait(HEARTBEAT_SECONDS):
            steps += 1
            age = None if self._step_age is None else duration(self._step_age)
            self._send(ipc.Event(heartbeat=ipc.Heartbeat(steps=steps, step_age=age, stuck=self._stuck)))

    def _send(self, event: ipc.Event) -> None:
        self._send_raw(encode_frame(event))

    def _send_raw(self, data: bytes) -> None:
        try:
            with self._sending:
                self._sock.sendall(data)
        except OSError:
            _end(0)  # the parent is gone

    def _receive(self) -> ipc.Command | None:
        header = self._read(_HEADER.size)
        body = None if header is None else self._read(_HEADER.unpack(header)[0])
        return None if body is None else ipc.Command.FromString(body)

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                part = self._sock.recv(size - len(data))
            except ConnectionError:
                return None
            if not part:
                return None
            data += part
        return data


def _words(text: str) -> list[str]:
    """Split a text into words with the space after them; joined, they are the text."""
    return re.findall(r"\s*\S+\s*|\s+", text)


def _text(request: pb.GenerateRequest) -> str:
    kind = request.WhichOneof("prompt")
    if kind == "tokens":
        return " ".join(map(str, request.tokens.ids))
    return request.chat.messages[-1].content if kind == "chat" else request.text


def _log() -> None:
    first = {"event": "one line", "level": "warning", "timestamp": "then", "figure": 7}
    last = {"event": "after a long line", "level": "info"}
    sys.stdout.write("\n".join([json.dumps(first), "bare text", "x" * 3_000_000, json.dumps(last), ""]))
    sys.stdout.flush()


def _write_journal(command: ipc.Command) -> None:
    if path := os.environ.get(JOURNAL):
        line = {"pid": os.getpid(), **MessageToDict(command, preserving_proto_field_name=True)}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "call_id": command.call_id}) + "\n")


def _end(status: int) -> NoReturn:
    os._exit(status)


def main() -> None:
    """Run one engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--config", default="{}")
    parser.add_argument("--no-hello", action="store_true", help="say nothing at all, until the stream ends")
    parser.add_argument("--exit", type=int, metavar="STATUS", help="exit at once")
    parser.add_argument("--stubborn", action="store_true", help="ignore shutdowns")
    parser.add_argument("--warm", type=Path, metavar="FILE", help="load libraries until a file is there")
    arguments = parser.parse_args()
    if arguments.exit is not None:
        _end(arguments.exit)
    sock = socket.socket(fileno=arguments.fd)
    if arguments.no_hello:
        while sock.recv(1 << 16):
            pass
    else:
        FakeEngine(sock, stubborn=arguments.stubborn, warm=arguments.warm).run()
    _end(0)


if __name__ == "__main__":
    main()
