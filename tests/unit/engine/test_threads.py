"""Work off the MLX thread, on real threads: each caller hears once, whatever hangs, fails or comes back late."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

from daemon.engine.background.background import LATE_SECONDS, Background
from daemon.engine.background.task import LOOKUP, PROMPT, TEMPLATE, TOKENIZER, Kind, Pending, Task
from daemon.shared import liveness
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import Clock

PATIENCE = 20.0


class Bench:
    """A background whose results a test takes, and its clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.background = Background(self.posted.put, self.clock)
        self.heard: list[Any] = []

    def run(self, task: Task[Any]) -> None:
        """Run a task; its result, or its error, is heard."""
        self.background.run(task, Pending(self.heard.append))

    def hear(self) -> Any:
        """Wait for the next that is heard."""
        self.posted.get(timeout=PATIENCE)()
        return self.heard[-1]

    def pass_(self, seconds: float) -> None:
        """Let it look once a second."""
        for _ in range(int(seconds)):
            self.clock.pass_(1)
            self.background.tick()


@pytest.fixture(name="bench")
def _bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.background.close()


def task(kind: Kind, lane: str, work: Callable[[], Any]) -> Task[Any]:
    """Return a task for a model of its lane's name."""
    return Task(kind, lane, lane, work)


def test_background_tasks_continue_across_pools(bench: Bench) -> None:
    """On threads of their kind; in the same lane and pool without another thread."""
    seen: list[tuple[str, int]] = []

    def note(then: Any) -> Any:
        thread = threading.current_thread()
        seen.append((thread.name, thread.native_id or 0))
        return then

    last = task(PROMPT, "b", lambda: note("done"))
    fourth = task(TEMPLATE, "b", lambda: note(last))
    third = task(PROMPT, "a", lambda: note(fourth))
    second = task(TOKENIZER, "a", lambda: note(third))
    bench.run(task(LOOKUP, "a", lambda: note(second)))
    assert bench.hear() == "done"
    assert [name for name, _ in seen] == ["files", "prompts", "prompts", "templates", "prompts"]
    assert seen[1] == seen[2]


def test_error_of_a_later_task_frees_its_lane(bench: Bench) -> None:
    """Ours as it is; any other as INTERNAL, with its text in the log alone."""

    def fail() -> Any:
        raise ZeroDivisionError("secret")

    with capture_logs() as logs:
        bench.run(task(LOOKUP, "a", lambda: task(PROMPT, "a", fail)))
        error = bench.hear()
    assert (error.reason, "secret" in error.message) == (Reason.INTERNAL, False)
    assert [line["event"] for line in logs] == ["unexpected_error"]
    bench.run(task(PROMPT, "a", lambda: 1))
    assert bench.hear() == 1


def test_panic_of_a_task_frees_its_lane(bench: Bench) -> None:
    """Of a library in Rust, such as a tokenizer: it is no Exception. It ended the thread, and its lane was closed."""

    class PanicException(BaseException):
        pass

    def fail() -> Any:
        raise PanicException("secret")

    with capture_logs():
        bench.run(task(PROMPT, "a", fail))
        error = bench.hear()
    assert (error.reason, "secret" in error.message) == (Reason.INTERNAL, False)
    bench.run(task(PROMPT, "a", lambda: 1))
    assert bench.hear() == 1


def test_abandoned_work_answers_each_caller_once(bench: Bench) -> None:
    """With a result or with an error; those behind it heard as well, and the lane is open afterwards."""
    for comes_back in (lambda: "late", lambda: 1 // 0):
        bench.heard.clear()
        reached, go_on = threading.Event(), threading.Event()

        def hang(reached: Any = reached, go_on: Any = go_on, comes_back: Any = comes_back) -> Any:
            reached.set()
            assert go_on.wait(PATIENCE)
            return comes_back()

        bench.run(task(LOOKUP, "a", hang))
        assert reached.wait(PATIENCE)
        bench.run(task(LOOKUP, "a", lambda: "behind"))
        with capture_logs() as logs:
            bench.pass_(LOOKUP.limit + 2)
            assert [line["event"] for line in logs] == ["background_work_abandoned"]
            assert (logs[0]["calls"], logs[0]["stuck"], logs[0]["work"]) == (2, 1, "lookup")
        assert {bench.hear().reason, bench.hear().reason} == {Reason.MODEL_NOT_RESPONDING}
        bench.run(task(LOOKUP, "a", lambda: "refused"))
        assert bench.hear().reason is Reason.MODEL_NOT_RESPONDING
        go_on.set()
        while bench.background.stuck():
            bench.pass_(1)
        bench.run(task(LOOKUP, "a", lambda: "again"))
        assert bench.hear() == "again"
        assert len(bench.heard) == 4


def test_progress_may_come_from_another_thread(bench: Bench) -> None:
    """Libraries let threads of their own work for them."""
    signed: list[liveness.Sign] = []
    reached, go_on = threading.Event(), threading.Event()

    def work() -> str:
        signed.append(liveness.current())
        reached.set()
        assert go_on.wait(PATIENCE)
        return "done"

    bench.run(task(LOOKUP, "a", work))
    assert reached.wait(PATIENCE)
    for _ in range(5):
        bench.pass_(LOOKUP.limit - 2)
        signed[0]()
    assert bench.background.stuck() == []
    go_on.set()
    assert bench.hear() == "done"
    assert liveness.current() is not signed[0]


def test_failed_thread_start_fails_only_its_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next, which has one, is answered."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, capture_logs():
        patch.setattr(threading.Thread, "start", refuse)
        bench.run(task(LOOKUP, "a", lambda: 1))
        refused = bench.hear()
    assert isinstance(refused, SidecarError)
    assert (refused.reason, bool(refused.retry_after)) == (Reason.MACHINE_EXHAUSTED, True), refused.message
    bench.run(task(LOOKUP, "a", lambda: 1))
    assert bench.hear() == 1


def test_thread_keeps_nothing_of_its_first_task(bench: Bench) -> None:
    """The thread stays for others. A task has a request, with a long prompt, or a piece of KV that was written."""
    dropped = threading.Event()

    def run() -> None:
        large = Bench()
        weakref.finalize(large, dropped.set)
        bench.run(task(LOOKUP, "a", partial(getattr, large, "heard")))

    run()
    bench.hear()
    bench.heard.clear()
    assert dropped.wait(PATIENCE)


def test_closing_drops_waiting_and_hanging_work() -> None:
    """Nothing is heard any more of what had not begun."""
    bench = Bench()
    reached, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        reached.set()
        go_on.wait(PATIENCE)

    begun: list[int] = []
    bench.run(task(LOOKUP, "a", hang))
    bench.run(task(LOOKUP, "a", lambda: begun.append(1)))
    assert reached.wait(PATIENCE)
    bench.background.close()
    bench.run(task(LOOKUP, "b", lambda: begun.append(2)))
    bench.pass_(2 * LATE_SECONDS)
    go_on.set()
    assert bench.hear() is None
    assert begun == []


def test_log_lines_of_work_name_its_model(bench: Bench) -> None:
    """A warning about a template, or a fault of the machine, is of no use without the model."""
    bench.run(Task(TEMPLATE, "org/name", "lane", lambda: get_contextvars().get("model")))
    assert bench.hear() == "org/name"
    bench.run(Task(TEMPLATE, "the disk tier", "lane", lambda: get_contextvars().get("model")))
    assert bench.hear() is None, "what is no name of a model, on the thread of the task before"
