"""
The process that renders chat templates: `python -m daemon.engine.template_worker`. Started by `chat_templates.py`.

A template is a program that comes with the model, and its sandbox bounds neither time nor memory. Here the kernel
bounds both. The process reads a line of JSON for each conversation, answers with a line, and ends with its input. A
line with a `probe` asks for the shape of a template instead.
"""

from __future__ import annotations

import errno
import json
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.engine.import_speed import bare, short_imports
from daemon.engine.prompt.template_probe import Probe, variables_read
from daemon.shared.descriptors import close_others

CPU_SECONDS = 2
"""Processor time of one conversation, rounded up to a whole second; a process that takes more is killed (SIGXCPU)."""
PROBE_SECONDS = 0.5
"""Processor time after which no further conversation is tried to find a template's shape."""
MEMORY_BYTES = 512 << 20
"""Bytes of addresses that rendering may take beyond those of the process itself."""
_MOST_ADDRESSES, _CLOSE_BYTES, _TRIED_BYTES = 1 << 47, 64 << 20, 8 << 20
"""Addresses that any process may have, how closely those of this one are found, and what is allocated to try."""
MAX_RENDERED = 16 << 20
"""Characters: twice the largest request."""


def main() -> None:
    """Render until the input ends."""
    # Spawned without a fork, so it has descriptors of the engine: the lock, and the socket to the parent.
    close_others()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fault = _prepare()
    for line in sys.stdin.buffer:
        _limit_time()
        fault = fault and _prepare()
        sys.stdout.write(json.dumps(fault or _answer(line)) + "\n")
        sys.stdout.flush()


def _prepare() -> dict[str, str]:
    """Import the renderer and limit the memory; return the machine's refusal, if any. The next line tries again."""
    try:
        with short_imports():
            import_renderer()
        _limit_memory()
    except OSError as error:
        return {"errno": str(error.errno)}
    except MemoryError:
        return {"errno": str(errno.ENOMEM)}
    return {}


def import_renderer() -> Any:
    """Return the renderer of transformers: templates are written for its extensions and filters."""
    try:
        with bare("transformers", "utils"):  # the whole package takes three times as long
            from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError:  # in another release, the renderer may take something from the package itself
        from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template


def _limit_memory(platform: str = sys.platform) -> bool:
    """Limit the addresses of this process, and return whether they are limited."""
    if platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return True
    return platform == "darwin" and _limit_memory_of_a_mac()


def _limit_memory_of_a_mac() -> bool:
    """
    Limit the addresses of this process on a Mac, and return whether that worked.

    macOS has enforced the limit since version 12 (xnu, `dosetrlimit`). It refuses a limit below what the process has,
    hundreds of gigabytes, and counts that as no other call does. So the least limit is found by trying. What an
    allocator reserves ahead is not known: if allocations fail that should not, the limit is lifted again.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    refused, allowed = 0, min(_MOST_ADDRESSES, before[1])
    while allowed - refused > _CLOSE_BYTES:
        tried = (refused + allowed) // 2
        if _allows(tried, before[1]):
            allowed = tried
        else:
            refused = tried
    if _allows(allowed + MEMORY_BYTES, before[1]) and _allocates():
        return True
    resource.setrlimit(resource.RLIMIT_AS, before)
    return False


def _allows(addresses: int, most: int) -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (addresses, most))
    except (ValueError, OSError):
        return False
    return True


def _allocates() -> bool:
    """Return whether blocks of several sizes can be had, half of MEMORY_BYTES in one piece among them."""
    try:
        for size in (1 << 10, 1 << 16, MEMORY_BYTES // 2):
            _ = [bytearray(size) for _ in range(max(1, _TRIED_BYTES // size))]
    except MemoryError:
        return False
    return True


def _limit_time() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = math.ceil(usage.ru_utime + usage.ru_stime)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS, hard))


def _answer(line: bytes) -> dict[str, Any]:
    """Return the text of a conversation, or the kind of error: a template can raise anything that a program can."""
    try:
        wanted = json.loads(line)
        if "probe" in wanted:
            return {"shape": _shape(wanted["probe"], wanted["options"])}
        _tell_time(wanted["template"], wanted["now"])
        text = _render(wanted["template"], wanted["messages"], wanted["options"])
        if len(text) > MAX_RENDERED:
            return {"refused": f"it becomes a text of {len(text)} characters; {MAX_RENDERED} is the most"}
        text.encode()  # half a character could not be tokenised
    except Exception as error:
        if type(error).__module__.startswith("jinja2"):
            return {"refused": str(error)}
        return {"raised": type(error).__name__}
    return {"text": text}


def _tell_time(template: str, now: float) -> None:
    """Let a template tell the time that it is given, not that of this machine: ranks of a group tell the same."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    moment = datetime(1970, 1, 1) + timedelta(seconds=now)  # noqa: DTZ001 - the time that a wall clock shows
    _compile_jinja_template(template).environment.globals["strftime_now"] = moment.strftime  # it is compiled once


def _render(template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    (text,), _ = import_renderer()(conversations=[list(messages)], chat_template=template, **options)
    return str(text)


def _shape(template: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape of a template as JSON, with what was found until the time was over."""
    from jinja2.meta import find_undeclared_variables
    from transformers.utils.chat_template_utils import _compile_jinja_template

    until = time.process_time() + PROBE_SECONDS
    tree = _compile_jinja_template(template).environment.parse(template)
    variables = variables_read(tree, find_undeclared_variables(tree))

    def render(messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
        return _render(template, messages, {**options, **given})

    return Probe(render, template, lambda: time.process_time() < until).shape(variables).to_json()


if __name__ == "__main__":
    main()
