"""Hostile texts: none blocks the event loop or the engine for other calls."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

import mlx_sidecar
from mlx_sidecar import Delta, Message
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.faults.raw import call
from tests.faults.watch import Held, answers_in_time, back_to
from tests.support.daemons import RunningDaemon
from tests.support.models import copy_of_embedded

STALL_SECONDS = 0.05
"""Longest time that the parent's loop may be busy with one thing."""
TRIES = 3
USER = pb.ChatMessage(role="user", content="x")


@dataclass(slots=True)
class Watched:
    """A daemon, and how long its event loop did one thing without a pause."""

    daemon: RunningDaemon
    file: Path

    def longest(self, since: int) -> float:
        """Return the longest time in seconds, of those noted after so many; 0 if none was worth a note."""
        return max(map(float, self.file.read_text().splitlines()[since:]), default=0.0)

    @property
    def noted(self) -> int:
        """How many were noted."""
        return len(self.file.read_text().splitlines())


@pytest.fixture(name="watched", scope="module")
def _watched() -> Iterator[Watched]:
    """Return a daemon with the real engine and a watched event loop, after a usual request of each kind."""
    folder = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    file = folder / "stalls"
    daemon = RunningDaemon.start(folder, [sys.executable, "-m", "tests.faults.serve_watched", str(file)])
    with daemon.client() as client:
        client.complete("embedded", "The", max_tokens=2)
        client.complete("embedded", [Message("user", "The")], max_tokens=2)
        client.invalidate_all(weights=False)
    yield Watched(daemon, file)
    assert daemon.stop() == 0
    shutil.rmtree(folder)


def text(prompt: str) -> bytes:
    """Return an encoded request with a text."""
    return pb.GenerateRequest(model="embedded", text=prompt, max_tokens=1).SerializeToString()


def chat(**fields: object) -> bytes:
    """Return an encoded request with a conversation."""
    chat = pb.Chat(**{"messages": [USER], **fields})  # type: ignore[arg-type]
    return pb.GenerateRequest(model="embedded", chat=chat, max_tokens=1).SerializeToString()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "one letter": lambda: text("a" * 400_000),
    "two letters": lambda: text("ab" * 200_000),
    "combining marks": lambda: text("e\u0301\u0302" * 50_000),
    "a family": lambda: text("\U0001f469\u200d\U0001f467" * 30_000),
    "control tokens": lambda: text("<|im_start|>" * 50_000),
    "zeros": lambda: text("\0" * 200_000),
    "brackets": lambda: text("[" * 200_000),
    "overrides": lambda: text("\u202e" * 100_000),
    "eight megabytes for a model that is not there": lambda: pb.GenerateRequest(
        model="absent", text="x" * (8 * 2**20 - 100)
    ).SerializeToString(),
    "tools without end": lambda: chat(tools=[pb.Tool(name="a")] * 1_000_000),
    "messages without end": lambda: chat(messages=[pb.ChatMessage()] * 2_000_000),
    "as many messages as there may be": lambda: chat(messages=[USER] * 10_000),
    "tool calls without end": lambda: chat(
        messages=[pb.ChatMessage(role="user", tool_calls=[pb.ToolCall()] * 2_000_000)]
    ),
    "deep JSON": lambda: chat(tools=[pb.Tool(name="a", parameters_json='{"a":' * 100_000)]),
    "long JSON": lambda: chat(tools=[pb.Tool(name="a", parameters_json='{"a":[' + "1," * 500_000 + "1]}")]),
    "a long number": lambda: chat(tools=[pb.Tool(name="a", parameters_json='{"a":' + "9" * 100_000 + "}")]),
    "stops without end": lambda: pb.GenerateRequest(
        model="embedded", text="x", stop=pb.Stop(strings=[""] * 2_000_000)
    ).SerializeToString(),
    "biases without end": lambda: pb.GenerateRequest(
        model="embedded", text="x", sampling=pb.Sampling(logit_bias=dict.fromkeys(range(500_000), 1.0))
    ).SerializeToString(),
    "as many ids as there may be": lambda: pb.GenerateRequest(
        model="embedded", tokens=pb.TokenIds(ids=[2**20] * 1_000_000)
    ).SerializeToString(),
    "more ids": lambda: pb.GenerateRequest(
        model="embedded", tokens=pb.TokenIds(ids=[1] * 8_000_000)
    ).SerializeToString(),
    "unknown fields without end": lambda: text("x") + b"\xba\x3e\x00" * 2_000_000,
}
"""Requests, made when they are sent: they take seconds and hundreds of megabytes."""


@pytest.mark.parametrize("name", HOSTILE)
def test_no_request_blocks_the_event_loop(watched: Watched, name: str) -> None:
    """
    The request is refused as the caller's fault, or done; no callback of the parent takes 50 ms for it.

    Its memory is new, and a busy machine takes long to give it: that counts as processor time, 60 ms once for eight
    megabytes that took 4 to 28. A request that blocks the loop does so each time, so it is sent up to three times.
    """
    request = HOSTILE[name]()
    held = Held.by(watched.daemon)
    times: list[float] = []
    while len(times) < TRIES and min(times, default=STALL_SECONDS) >= STALL_SECONDS:
        before = watched.noted
        ended = call(watched.daemon, "Generate", request)
        assert ended.code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        answers_in_time(watched.daemon)
        times.append(watched.longest(before))
    assert min(times) < STALL_SECONDS, f"{name} kept the loop for {times} s"
    back_to(held, watched.daemon)


def test_event_loop_watch_detects_a_stall(watched: Watched) -> None:
    """Eight megabytes take the loop a moment, and it is noted: a watch that sees nothing would prove nothing."""
    before = watched.noted
    call(watched.daemon, "Generate", HOSTILE["as many ids as there may be"]())
    assert watched.longest(before) > 0


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_endless_template_stops_no_other_request(watched: Watched, folder: Path) -> None:
    """Row 44: its worker is killed, its caller told, and a stream that runs gets all its tokens."""
    model = copy_of_embedded(folder)
    (model / "chat_template.jinja").write_text(ENDLESS)
    before = watched.noted
    with watched.daemon.client() as client, watched.daemon.client() as other:
        with client.generate("embedded", "The", max_tokens=400, ignore_eos=True) as stream:
            events = iter(stream)
            while not isinstance(next(events), Delta):
                pass
            for _ in range(3):
                with pytest.raises(mlx_sidecar.InvalidArgument) as caught:
                    other.complete(str(model), [Message("user", "x")])
                assert caught.value.field == "chat"
            assert "never ended" in str(caught.value)
            rest = sum(len(event.token_ids) for event in events if isinstance(event, Delta))
        assert rest > 300
        assert other.complete("embedded", [Message("user", "x")], max_tokens=1).usage.completion_tokens == 1
    answers_in_time(watched.daemon)
    assert watched.longest(before) < STALL_SECONDS


def test_control_characters_are_escaped_in_the_log(watched: Watched) -> None:
    """Row 31: each line of the log is one line, whatever a caller sends as a name."""
    odd = "no\nbody\x1b[31m\u202e\u2028\x00"
    with watched.daemon.client() as client:
        with pytest.raises(mlx_sidecar.SidecarError):
            client.complete(odd, "x")
        for prompt in ("\0\0", "\u202egnirts", "[" * 1000, "\ufffe\uffff"):
            with suppress(mlx_sidecar.InvalidArgument):  # of no token, if they are
                assert client.complete("embedded", prompt, max_tokens=1).usage.completion_tokens == 1
    lines = (watched.daemon.folder / "daemon.log").read_bytes().decode().split("\n")
    told = [json.loads(line) for line in lines if line]
    assert any(line.get("rpc") == "Generate" and line.get("dropped") for line in told), "it is no name of a model"
    assert odd not in [line.get("model") for line in told]
    assert all(line.isprintable() for line in lines)
