"""Log fields: only fields on the allow list, with values of their kind, are logged."""

from __future__ import annotations

import ast
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.mlx.measurements import MEASUREMENTS
from daemon.cache.mlx.self_tests import VERDICTS
from daemon.engine.background import task
from daemon.engine.memory.pressure import Level
from daemon.kv.mlx.guess_passes import Exactness
from daemon.server.supervision.supervisor import State
from daemon.shared.errors import Reason, SidecarError, invalid
from daemon.shared.log_fields import FIELDS, Words, cause, permitted, refusal
from daemon.shared.log_frames import MAX_FRAMES, UNTOLD, frames, library_event, output_line
from mlx_sidecar.v1 import sidecar_pb2 as pb

DAEMON = Path(__file__).resolve().parents[3] / "daemon"
SECRET = "a secret of the caller"


def keywords() -> Iterator[tuple[str, str]]:
    """Yield module and name of each field that a line of the daemon has, or that is bound for later lines."""
    for path in sorted(DAEMON.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("log")), keywords=given):
                    pass
                case ast.Call(func=ast.Name("write" | "bind_contextvars" | "end"), keywords=given):
                    pass
                case _:
                    continue
            yield from ((path.name, one.arg) for one in given if one.arg is not None)


def test_every_logged_field_is_on_the_list() -> None:
    """A field that is not on the list would be dropped; a new field needs a kind."""
    found = {name: module for module, name in keywords()}
    assert len(found) > 25
    known = {*FIELDS, "exc_info"}
    assert {name: module for name, module in found.items() if name not in known} == {}
    spans = {f"{field.name}_s" for field in pb.Timings.DESCRIPTOR.fields}
    assert spans <= set(FIELDS)
    assert set(refusal(SidecarError(Reason.QUEUE_FULL, "m", field="model", metadata={"error_id": "0" * 12}))) <= set(
        FIELDS
    )


def test_every_enum_value_may_be_logged() -> None:
    """The list names them itself, so that it needs nothing of the engine."""
    assert all(FIELDS["state"](state.value) for state in State)
    assert all(FIELDS["pressure"](level.name.lower()) for level in Level)
    assert all(FIELDS["guess_exactness"](level.name.lower()) for level in Exactness)
    assert all(FIELDS["reason"](str(reason)) for reason in Reason)
    assert all(FIELDS["work"](kind.name) for kind in vars(task).values() if isinstance(kind, task.Kind))
    assert all(FIELDS["reason"](name) for name in ("stop", "length", "tool_calls"))
    assert all(FIELDS["outcome"](name) for name in ("hit", "loaded", "uncached", "estimated"))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_log_field_accepts_caller_text(name: str) -> None:
    """Names of models and of requests are texts too, without spaces; paths begin with a slash."""
    assert permitted({name: SECRET}) == {"dropped": 1}
    assert permitted({name: {"a": SECRET}}) == {"dropped": 1}
    assert permitted({name: [SECRET]}) == {"dropped": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "org/name-1.5"),
        ("model", "/a directory/with spaces"),
        ("model", None),
        ("models", ["embedded", "/a b"]),
        ("field", "chat.tools[3].parameters_json"),
        ("field", "sampling.logit_bias"),
        ("field", "request"),
        ("error", "PermissionError: EACCES"),
        ("error", Words("the daemon is shutting down")),
        ("request_id", "req-1"),
        ("duration_s", 0.5),
        ("dry_run", True),
        ("file", "model-00001-of-00002.safetensors"),
        ("file", MEASUREMENTS.file_name),
        ("file", VERDICTS.file_name),
    ],
)
def test_operator_log_fields_pass_unchanged(name: str, value: object) -> None:
    """It passes unchanged."""
    assert permitted({name: value}) == {name: value}


@pytest.mark.parametrize("field", ["chat.secret", "a b", "", "chat..tools", "chat.tools[x]", "sampling.logit_bias[7]"])
def test_unknown_request_field_path_is_not_logged(field: str) -> None:
    """It could be made of a caller's words, such as the key of a map."""
    assert permitted({"field": field}) == {"dropped": 1}


def test_unknown_log_fields_are_dropped_and_counted() -> None:
    """The count of the engine's own line is added."""
    assert permitted({"pid": 7, "tools": SECRET, "salt": SECRET}) == {"pid": 7, "dropped": 2}
    assert permitted({"dropped": 2, "tools": SECRET}) == {"dropped": 3}


@pytest.mark.parametrize("reason", Reason)
def test_error_message_is_logged_only_in_known_words(reason: Reason) -> None:
    """A refused request is logged by its field."""
    told = permitted(refusal(SidecarError(reason, SECRET, field="chat.tools")))
    quotes = reason in (Reason.INVALID_ARGUMENT, Reason.INTERNAL)
    assert told.get("error") == (None if quotes else SECRET)
    assert (told["reason"], told["field"]) == (reason, "chat.tools")
    assert "dropped" not in told


def test_map_key_is_left_out_of_a_logged_field_path() -> None:
    """It is a token, and the caller's."""
    assert refusal(invalid("sampling.logit_bias[777]", "is too much"))["field"] == "sampling.logit_bias"


def test_logged_cause_is_a_class_and_a_code() -> None:
    """Of system errors the name of their number."""
    assert cause(ValueError(SECRET)) == "ValueError"
    assert cause(FileNotFoundError(2, SECRET)) == "FileNotFoundError: ENOENT"
    assert cause(OSError(SECRET)) == "OSError"
    assert cause(invalid("chat", SECRET)) == "SidecarError: INVALID_ARGUMENT"
    assert cause(json.JSONDecodeError(SECRET, SECRET, 0)) == "JSONDecodeError"


def _fail(depth: int = 0) -> None:
    local = SECRET  # noqa: F841 - what a traceback with values would show
    if depth:
        _fail(depth - 1)
    try:
        json.loads(SECRET)
    except ValueError as error:
        raise KeyError(SECRET) from error


def test_logged_traceback_covers_chained_exceptions() -> None:
    """It has no texts of exceptions, groups or notes."""
    with pytest.raises(KeyError) as caught:
        _fail()
    caught.value.add_note(SECRET)
    shown = frames(caught.value)
    assert "KeyError\nwhich came of\nTraceback" in shown
    assert shown.endswith("JSONDecodeError")
    assert f'File "{__file__}", line ' in shown
    assert "in _fail" in shown
    assert SECRET not in shown
    group = frames(ExceptionGroup(SECRET, [ValueError(SECRET), OSError(13, SECRET)]))
    assert group.splitlines()[-2:] == ["  of ValueError", "  of PermissionError: EACCES"]


def test_endless_recursion_has_a_short_traceback() -> None:
    """Its first and its last frames."""
    with pytest.raises(KeyError) as caught:
        _fail(200)
    shown = frames(caught.value).split("which came of")[0]
    assert len(shown.splitlines()) == MAX_FRAMES + 3
    assert "frames" in shown


def logged(log: Any) -> str:
    """Return the log text of a library's message."""
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(library_event(record, record.args))

    logger = logging.Logger("library")
    logger.addHandler(Handler())
    log(logger)
    return seen[0]


def test_library_messages_are_logged_as_constants() -> None:
    """Values, and messages that were formatted before the call, may come from a request."""
    quoted = f"cannot read {SECRET}"
    assert logged(lambda logger: logger.warning("slow")) == "slow"
    assert logged(lambda logger: logger.warning("slow by %d of %.1f ms", 5, 2.5)) == "slow by 5 of 2.5 ms"
    assert logged(lambda logger: logger.warning("cannot read %s: %r", SECRET, SECRET)) == "cannot read …: …"
    assert logged(lambda logger: logger.warning("%(n)d of %(text)s", {"n": 1, "text": SECRET})) == "1 of …"
    assert logged(lambda logger: logger.warning("%d", SECRET)) == "%d"
    assert logged(lambda logger: logger.warning(quoted)) == UNTOLD
    assert logged(lambda logger: logger.warning(ValueError(SECRET))) == UNTOLD


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ('  File "/a b/c.py", line 3, in f', '  File "/a b/c.py", line 3, in f'),
        (f"mlx_lm.errors.OddError: {SECRET}", "mlx_lm.errors.OddError"),
        ("Thread 0x00007fa7732ff6c0 (most recent call first):", "Thread 0x00007fa7732ff6c0 (most recent call first):"),
        ('  File "/a/b.py", line 81 in f', '  File "/a/b.py", line 81 in f'),
        ("", None),
        (f"    {SECRET}", None),
        (f"{SECRET}: Error", None),
        (f"Fatal Python error: x: {SECRET}", None),
    ],
)
def test_bare_output_is_logged_as_places_and_classes(line: str, shown: str | None) -> None:
    """From when its process knows a request."""
    assert output_line(line) == shown


def test_thread_exceptions_are_logged_like_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python itself would print their words."""
    from structlog.testing import capture_logs

    from daemon.shared import logs

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    logs.take_over()

    class Odd:
        def __del__(self) -> None:
            raise ValueError(SECRET)

    def end() -> None:
        raise ValueError(SECRET)

    with capture_logs() as lines:
        thread = threading.Thread(target=end)
        thread.start()
        thread.join()
        odd = Odd()
        del odd
    assert [line["event"] for line in lines] == ["thread_crashed", "exception_ignored"]
    assert [type(line["exc_info"]) for line in lines] == [ValueError, ValueError]
    assert capsys.readouterr().err == ""
