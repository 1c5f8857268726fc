"""Chat templates are untrusted programs: they run in workers with limits, and a failure ends one request only."""

from __future__ import annotations

import os
import resource
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer
from structlog.testing import capture_logs

from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine import template_worker
from daemon.engine.calls import generate as calls
from daemon.engine.prompt.chat_templates import BAN_SECONDS, IDLE_SECONDS, STRIKES, Templates
from daemon.engine.prompt.template_shape import TemplateShape
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.template_worker import MEMORY_BYTES
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.builders import Clock
from tests.support.daemons import END_SECONDS, alive, wait_until
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Harness

MESSAGES = [{"role": "user", "content": "one two"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(name="clock")
def _clock() -> Clock:
    """Return a clock that is set by hand."""
    return Clock()


def error_of(templates: Templates, template: str, messages: Any = MESSAGES, **options: Any) -> SidecarError:
    """Return the error of a template that gives no text. Its field is always the chat."""
    with pytest.raises(SidecarError) as caught:
        templates.render(template, messages, options)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_ARGUMENT, "chat")
    return caught.value


def test_chat_template_renders_like_transformers(tokenizer: Tokenizer) -> None:
    """A worker gives the same text as transformers: options, tools, and variables of the tokenizer."""
    plain = load_tokenizer(EMBEDDED_PATH)._tokenizer
    messages = [*MESSAGES, {"role": "assistant", "content": "é ✓ \u2028"}]
    for options in ({"add_generation_prompt": True}, {"add_generation_prompt": False}, {"tools": [{"name": "x"}]}):
        assert tokenizer.render(messages, **options) == plain.apply_chat_template(messages, tokenize=False, **options)


def test_chat_template_has_the_usual_filters(templates: Templates) -> None:
    """Templates use filters, functions and loop controls of transformers."""
    template = (
        "{% generation %}{% for m in messages %}{{ m|tojson }}{% break %}{% endfor %}{% endgeneration %}{{ bos_token }}"
    )
    assert templates.render(template, MESSAGES, {"bos_token": "<s>"}) == '{"role": "user", "content": "one two"}<s>'


def test_chat_template_is_told_the_time_of_the_wall_clock(templates: Templates) -> None:
    template = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}"
    assert templates.render(template, MESSAGES, {}, 951782399.0) == "2000-02-28 23:59:59"
    before = datetime.now()  # noqa: DTZ005 - as a template tells it
    shown = datetime.fromisoformat(templates.render(template, MESSAGES, {}))
    assert before.replace(microsecond=0) <= shown <= datetime.now()  # noqa: DTZ005


def test_date_in_a_prompt_is_that_of_the_first_rank(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks and time zones of ranks differ, and their prompts must not."""
    path = copy_of_embedded(tmp_path)
    (path / "chat_template.jinja").write_text("It is {{ strftime_now('%d.%m.%Y') }}.")
    ask = pb.GenerateRequest(
        model=str(path),
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="Which day is it?")]),
        prompt_logprobs=0,
        max_tokens=1,
    )
    monkeypatch.setattr(calls, "agreed", lambda _: 0.0)
    scores = [event.generate.prompt_logprobs.logprobs for event in harness.run(ask).events]
    assert "".join(entry.text for entries in scores for entry in entries).endswith("01.01.1970.")


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(a='x') %}{% for i in range(40) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ '%099999999999d' % 1 }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% set a = [1] * 10 ** 9 %}{{ a|length }}",
        "{{ 'a' * 20000000 }}",
    ],
    ids=["loops", "power", "doubling", "string", "format", "recursion", "list", "output"],
)
def test_expensive_chat_template_is_refused(templates: Templates, template: str) -> None:
    """Processor time and memory of a worker are limited."""
    error_of(templates, template)
    assert templates.render("{{ messages[0].content }}", MESSAGES, {}) == "one two"


def test_endless_chat_template_is_refused_for_a_while(clock: Clock) -> None:
    """Such a template takes no worker then, and other templates are rendered."""
    dies_of_loops = (
        "import sys\n"
        "for line in sys.stdin:\n"
        "    if 'loop' in line: break\n"
        '    print(\'{"text": "fine"}\', flush=True)'
    )
    templates = Templates(clock, [sys.executable, "-c", dies_of_loops])
    for _ in range(STRIKES):
        assert "too much time" in error_of(templates, "loop").message
    assert templates.pids == []
    assert "never ended" in error_of(templates, "loop").message
    assert templates.pids == []
    assert templates.render("others", MESSAGES, {}) == "fine"
    clock.pass_(BAN_SECONDS)
    assert "too much time" in error_of(templates, "loop").message
    templates.close()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append.__self__.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.getpid() }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{{ (messages|attr('__class__')).x.y }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{% set _ = messages.append(1) %}",
        "{{ '\\ud800' }}",
        "{{ 1 // 0 }}",
        "{% endfor %}",
    ],
)
def test_failing_or_escaping_template_is_refused(templates: Templates, template: str) -> None:
    """The sandbox keeps templates from Python. An error reaches one caller, even with a text that is no text."""
    error_of(templates, template)


def test_chat_template_error_may_have_any_length(templates: Templates) -> None:
    """The error quotes the beginning of its message."""
    error = error_of(templates, "{{ raise_exception('no' * 1000000) }}")
    assert error.message.startswith("chat is refused by the model's chat template: nono")
    assert len(error.message) < 300


def test_killed_template_worker_is_replaced(templates: Templates) -> None:
    """Only the conversation that was being rendered fails."""
    templates.render("x", MESSAGES, {})
    (first,) = templates.pids
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not alive(first), "it has ended")
    error_of(templates, "killed meanwhile")
    assert templates.render("x", MESSAGES, {}) == "x"
    assert first not in templates.pids


def test_template_worker_holds_no_engine_descriptor(clock: Clock) -> None:
    """A file of the engine, such as its lock, would outlive it in a worker."""
    reads, writes = os.pipe()
    os.set_inheritable(writes, True)
    templates = Templates(clock)
    templates.render("x", MESSAGES, {})
    os.close(writes)
    with open(reads, "rb") as pipe:
        assert pipe.read() == b""
    ((worker, _),) = templates._idle
    assert worker._process.stdin is not None
    worker._process.stdin.close()
    assert worker._process.wait(END_SECONDS) == 0
    templates.close()


def test_closing_ends_the_template_workers(clock: Clock) -> None:
    """A pool can be closed twice, and without any worker."""
    templates = Templates(clock)
    templates.render("x", MESSAGES, {})
    (worker,) = templates.pids
    templates.close()
    templates.close()
    assert not alive(worker)
    error_of(templates, "x")
    Templates(clock).close()


def test_closing_busy_workers_blames_no_template(clock: Clock) -> None:
    """A daemon may end right after a load, while the first worker starts."""
    templates = Templates(clock, [sys.executable, "-c", "import time; time.sleep(600)"])
    with capture_logs() as logs, ThreadPoolExecutor(1) as pool:
        shape = pool.submit(templates.shape, "x", {})
        wait_until(lambda: bool(templates.pids), "the worker has begun")
        templates.close()
        assert shape.result(60) == TemplateShape()
    assert not logs


def test_broken_template_worker_fails_one_request(clock: Clock) -> None:
    """The request fails as if the worker had died."""
    templates = Templates(clock, [sys.executable, "-c", "input(); print('no')"])
    with pytest.raises(ValueError):
        templates.render("x", MESSAGES, {})
    templates.close()


def test_template_workers_grow_on_demand_and_idle_out(clock: Clock) -> None:
    """Two templates need two workers, and a third template waits. After the idle time, one worker is left."""
    echo = 'import sys\nfor line in sys.stdin:\n    print(\'{"text": "x"}\', flush=True)'
    templates = Templates(clock, [sys.executable, "-c", echo], workers=2)
    with closing(templates):
        taken = [templates._take(), templates._take()]
        assert len(set(templates.pids)) == 2
        for worker in taken:
            templates._give_back(worker, alive=True)
        templates.trim()
        assert len(templates.pids) == 2
        clock.pass_(IDLE_SECONDS)
        templates.trim()
        (left,) = templates.pids
        (ended,) = {worker.pid for worker in taken} - {left}
        wait_until(lambda: not alive(ended), "the other has ended")
        assert templates.render("x", MESSAGES, {}) == "x"
        clock.pass_(IDLE_SECONDS)
        templates.trim()
        assert templates.pids == [left]


def test_concurrent_templates_are_limited_by_workers(clock: Clock) -> None:
    """Many threads ask, and each worker has one conversation at a time."""
    answer = 'import sys\nfor line in sys.stdin:\n    print(\'{"text": "x"}\', flush=True)'
    templates = Templates(clock, [sys.executable, "-c", answer], workers=2)
    with closing(templates), ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: templates.render("x", MESSAGES, {}), range(40)))
        assert texts == ["x"] * 40
        assert len(templates.pids) <= 2


class MacLimits:
    """The limit of address space as macOS has it: one below what the process has is refused."""

    def __init__(self, held: int, most: int = (1 << 63) - 1) -> None:
        self.held = held
        self.limits = (most, most)

    def get(self, _which: int) -> tuple[int, int]:
        return self.limits

    def set(self, _which: int, limits: tuple[int, int]) -> None:
        if not self.held <= limits[0] <= limits[1] <= self.limits[1]:
            raise ValueError("current limit exceeds maximum limit")
        self.limits = limits


@pytest.fixture(name="mac")
def _mac(monkeypatch: pytest.MonkeyPatch) -> MacLimits:
    """Return the limits of a Mac's process, which begins with 411 GiB of addresses."""
    limits = MacLimits(held=(411 << 30) + 12_345)
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits.get(which))
    monkeypatch.setattr(resource, "setrlimit", lambda which, values: limits.set(which, values))
    return limits


def test_memory_of_a_template_is_limited_on_a_mac(mac: MacLimits) -> None:
    """macOS enforces the limit, and does not tell what a process has. An allocation beyond it fails."""
    assert template_worker._limit_memory("darwin")
    soft, hard = mac.limits
    assert MEMORY_BYTES <= soft - mac.held <= MEMORY_BYTES + (64 << 20)
    assert hard == (1 << 63) - 1


def test_limit_of_the_user_stays_on_a_mac(mac: MacLimits) -> None:
    """A shell's `ulimit -v` may be lower than what the worker would ask for."""
    mac.limits = (mac.held + (1 << 20),) * 2
    before = mac.limits
    assert not template_worker._limit_memory("darwin")
    assert mac.limits == before


def test_limit_under_which_a_mac_cannot_allocate_is_lifted(mac: MacLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its allocator may reserve addresses ahead. Templates are rendered without the limit then."""
    before = mac.limits
    monkeypatch.setattr(template_worker, "_allocates", lambda: False)
    assert not template_worker._limit_memory("darwin")
    assert mac.limits == before
