"""Slow chat templates, which are untrusted programs, delay only the conversations of their own model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.engine.background.task import Pool
from daemon.engine.prompt.chat_templates import WORKERS, Templates
from mlx_sidecar import AsyncClient, Completion, Message
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.daemons import RunningDaemon
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Answer, Harness, generate

SLOW = (
    "{% for a in range(ROUNDS) %}{% for b in range(1000) %}{% endfor %}{% endfor %}"
    "{% for message in messages %}{{ message.content }}{% endfor %}"
)
"""Takes half a second of a processor: four times as much is refused."""
ROUNDS = "3000"
FLOOD = 20
CHAT = [Message(role="user", content="once upon a time")]


def model(folder: Path, name: str, template: str = "") -> str:
    """Return a new model with its own template."""
    path = copy_of_embedded(folder, name, tested=True)
    if template:
        (path / "chat_template.jinja").write_text(template)
    return str(path)


def chat(name: str, content: str = "once upon a time") -> pb.GenerateRequest:
    """Return a conversation with a model."""
    messages = [pb.ChatMessage(role="user", content=content)]
    return pb.GenerateRequest(model=name, chat=pb.Chat(messages=messages), max_tokens=1)


@pytest.fixture(name="harness")
def _harness(tmp_path: Path) -> Iterator[Harness]:
    """Return an engine for one test."""
    harness = Harness(state_dir=tmp_path / "state")
    yield harness
    harness.close()


async def test_slow_templates_hold_up_no_other_prompt(start_daemon: Callable[..., RunningDaemon], folder: Path) -> None:
    """
    A plain prompt of their own model, of another, and another model's conversation are answered while one more of the
    twenty is rendered, or two.
    """
    slow, other = model(folder, "slow", SLOW.replace("ROUNDS", ROUNDS)), model(folder, "other")
    daemon = start_daemon()
    with daemon.client():
        pass
    async with AsyncClient(daemon.socket) as client:

        async def ask(name: str, prompt: str | list[Message]) -> Completion:
            return await client.complete(name, prompt, max_tokens=1)

        await asyncio.gather(ask(slow, CHAT), ask(other, CHAT), ask("embedded", "The"))  # all is loaded and started
        flood = [asyncio.create_task(ask(slow, CHAT)) for _ in range(FLOOD)]

        def rendered() -> int:
            return sum(one.done() for one in flood)

        await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
        for name, prompt in (("embedded", "The"), (slow, "The"), (other, CHAT), (other, "The"), ("embedded", CHAT)):
            before = rendered()
            await ask(name, prompt)
            assert rendered() - before <= 2, f"{name} waited for others with {prompt}"
        assert rendered() < FLOOD / 2
        answers = await asyncio.gather(*flood)
        assert len({(one.text, one.usage.prompt_tokens) for one in answers}) == 1
    assert daemon.stop() == 0


class Gate:
    """Holds templates until the test releases them, and records which are being rendered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.active = self.most = 0
        self.go_on = threading.Semaphore(0)
        self._lock = threading.Lock()
        real = Templates.render

        def render(templates: Templates, template: str, messages: Any, options: Any, now: Any = None) -> str:
            with self._lock:
                self.begun.append(messages[0]["content"])
                self.active += 1
                self.most = max(self.most, self.active)
            assert self.go_on.acquire(timeout=60)
            with self._lock:
                self.active -= 1
            return real(templates, template, messages, options, now)

        monkeypatch.setattr(Templates, "render", render)


@pytest.fixture(name="gate")
def _gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Return a gate that holds templates."""
    return Gate(monkeypatch)


def test_one_model_has_at_most_one_template_worker(harness: Harness, gate: Gate) -> None:
    """Conversations of a model are rendered in the order of their arrival, one at a time."""
    calls = [harness.begin(chat("embedded", str(number))) for number in range(8)]
    harness.until(lambda: gate.active == 1)
    gate.go_on.release(8)
    for call in calls:
        harness.finish(call)
    assert gate.most == 1
    assert gate.begun == [str(number) for number in range(8)]
    assert len(harness.engine._templates.pids) == 1


def test_template_workers_are_few_and_models_alternate(harness: Harness, gate: Gate, tmp_path: Path) -> None:
    """The first conversation of each of six models is rendered before any second one, on all workers."""
    names = [model(tmp_path, letter) for letter in "abcdef"]
    calls = [harness.begin(chat(name, f"{name[-1]}{number}")) for name in names for number in range(3)]
    templates = harness.engine._background._threads[Pool.TEMPLATES]._lanes
    harness.until(lambda: sum(len(lane.waiting) for lane in list(templates._lanes.values())) == len(calls) - WORKERS)
    harness.until(lambda: gate.active == WORKERS)  # each template was tried before
    gate.go_on.release(len(calls))
    for call in calls:
        assert Answer(harness.finish(call)).finished.usage.completion_tokens == 1
    assert gate.most == WORKERS
    assert len(harness.engine._templates.pids) <= WORKERS
    assert sorted(gate.begun[:6]) == [f"{letter}0" for letter in "abcdef"]
    assert sorted(gate.begun, key=lambda one: one[0]) == [
        f"{letter}{number}" for letter in "abcdef" for number in range(3)
    ]


def test_plain_prompts_pass_waiting_templates(harness: Harness, gate: Gate, tmp_path: Path) -> None:
    """Text and ids are prepared while all workers are busy and conversations wait, for any model."""
    names = [model(tmp_path, letter) for letter in "abcdef"]
    calls = [harness.begin(chat(name)) for name in names for _ in range(2)]
    harness.until(lambda: gate.active == WORKERS)
    for name in (*names, "embedded"):
        assert harness.run(generate("The", model=name)).finished.usage.completion_tokens > 0
        ids = pb.GenerateRequest(model=name, tokens=pb.TokenIds(ids=[40, 41]), max_tokens=2)
        assert harness.run(ids).finished.usage.completion_tokens > 0
    assert len(gate.begun) == WORKERS
    gate.go_on.release(len(calls))
    for call in calls:
        harness.finish(call)
    harness.settle()


def test_cancelled_conversations_are_not_rendered(harness: Harness, gate: Gate) -> None:
    """Of twenty cancelled conversations, only the first takes a worker; the next caller follows it."""
    calls = [harness.begin(chat("embedded", str(number))) for number in range(20)]
    harness.until(lambda: gate.active == 1)
    for call in calls:
        harness.cancel(call)
    last = harness.begin(chat("embedded", "last"))
    gate.go_on.release(2)
    assert Answer(harness.finish(last)).finished.usage.completion_tokens == 1
    assert gate.begun == ["0", "last"]
    harness.settle()
