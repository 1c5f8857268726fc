"""Chat templates are programs of strangers: they run apart, with limits, and what they break is one request."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.prompt.chat_templates import BAN_SECONDS, IDLE_SECONDS, STRIKES, Templates
from daemon.engine.prompt.tokenizers import Tokenizer
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import Clock
from tests.support.daemons import END_SECONDS, alive, wait_until

MESSAGES = [{"role": "user", "content": "one two"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(name="clock")
def _clock() -> Clock:
    """Return a clock that is set by hand."""
    return Clock()


def error_of(templates: Templates, template: str, messages: Any = MESSAGES, **options: Any) -> SidecarError:
    """Return why a template gives no text; it is always the chat that is refused."""
    with pytest.raises(SidecarError) as caught:
        templates.render(template, messages, options)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_ARGUMENT, "chat")
    return caught.value


def test_a_conversation_is_rendered_as_transformers_does_it(tokenizer: Tokenizer) -> None:
    """The same text as without a process between: options, tools and what the tokenizer adds."""
    plain = load_tokenizer(EMBEDDED_PATH)._tokenizer
    messages = [*MESSAGES, {"role": "assistant", "content": "é ✓ \u2028"}]
    for options in ({"add_generation_prompt": True}, {"add_generation_prompt": False}, {"tools": [{"name": "x"}]}):
        assert tokenizer.render(messages, **options) == plain.apply_chat_template(messages, tokenize=False, **options)


def test_a_template_sees_what_the_library_gives_it(templates: Templates) -> None:
    """Its filters, its functions and the loop controls that templates are written for."""
    template = (
        "{% generation %}{% for m in messages %}{{ m|tojson }}{% break %}{% endfor %}{% endgeneration %}{{ bos_token }}"
    )
    assert templates.render(template, MESSAGES, {"bos_token": "<s>"}) == '{"role": "user", "content": "one two"}<s>'


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
def test_a_template_that_takes_too_much_is_refused_and_the_next_one_is_rendered(
    templates: Templates, template: str
) -> None:
    """Within bounded processor time and memory, whatever it does with them."""
    error_of(templates, template)
    assert templates.render("{{ messages[0].content }}", MESSAGES, {}) == "one two"


def test_a_template_that_never_ended_twice_is_not_tried_again_for_a_while(clock: Clock) -> None:
    """It costs nobody anything then; other templates are rendered."""
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
def test_a_template_that_wants_out_or_fails_is_refused(templates: Templates, template: str) -> None:
    """The sandbox keeps it from Python; what it raises, even as text that is none, reaches one caller."""
    error_of(templates, template)


def test_a_template_may_refuse_at_any_length(templates: Templates) -> None:
    """Its words are told in part."""
    error = error_of(templates, "{{ raise_exception('no' * 1000000) }}")
    assert error.message.startswith("chat is refused by the model's chat template: nono")
    assert len(error.message) < 300


def test_a_worker_that_was_killed_is_replaced(templates: Templates) -> None:
    """Nobody but the conversation that was there notices."""
    templates.render("x", MESSAGES, {})
    (first,) = templates.pids
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not alive(first), "it has ended")
    error_of(templates, "killed meanwhile")
    assert templates.render("x", MESSAGES, {}) == "x"
    assert first not in templates.pids


def test_a_worker_holds_no_file_of_the_engine_and_ends_with_it(clock: Clock) -> None:
    """Neither the lock nor the line to the parent, which would otherwise outlive the engine."""
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


def test_closing_ends_the_worker_and_renders_nothing_more(clock: Clock) -> None:
    """Twice is harmless, and so is never having begun."""
    templates = Templates(clock)
    templates.render("x", MESSAGES, {})
    (worker,) = templates.pids
    templates.close()
    templates.close()
    assert not alive(worker)
    error_of(templates, "x")
    Templates(clock).close()


def test_a_worker_that_cannot_be_started_or_says_nothing_sensible_fails_one_request(clock: Clock) -> None:
    """As one that died."""
    templates = Templates(clock, [sys.executable, "-c", "input(); print('no')"])
    with pytest.raises(ValueError):
        templates.render("x", MESSAGES, {})
    templates.close()


def test_workers_are_as_many_as_are_needed_at_once_and_end_when_they_idle(clock: Clock) -> None:
    """Two templates at a time need two, a third waits; after a while one is left, and it is used."""
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


def test_no_more_templates_are_rendered_at_once_than_there_are_workers(clock: Clock) -> None:
    """Whoever asks; each has a worker for itself."""
    answer = 'import sys\nfor line in sys.stdin:\n    print(\'{"text": "x"}\', flush=True)'
    templates = Templates(clock, [sys.executable, "-c", answer], workers=2)
    with closing(templates), ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: templates.render("x", MESSAGES, {}), range(40)))
        assert texts == ["x"] * 40
        assert len(templates.pids) <= 2
