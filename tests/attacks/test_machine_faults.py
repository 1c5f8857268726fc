"""
The machine fails and the model is not blamed: each call of the system that may fail, at each place of the engine.

After each failure no lease or file is held, the next call works, and the log has no traceback.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from structlog.testing import capture_logs

import mlx_sidecar
from daemon.engine import template_worker
from daemon.engine.prompt.chat_templates import Templates
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.attacks.failing_calls import LOADS, PROMPTS, os_error, worker
from tests.support.daemons import SERVE, RunningDaemon
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Harness

EXHAUSTED = [errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM]
NUMBERS = [*EXHAUSTED, errno.EIO, errno.EACCES]


@pytest.fixture(name="engine")
def _engine(tmp_path: Path) -> Iterator[Harness]:
    """Return an engine. Check afterwards that nothing is in use."""
    harness = Harness(state_dir=tmp_path / "state")
    with capture_logs() as logs:
        yield harness
        harness.settle()
        harness.close()
    assert [entry for entry in logs if entry["log_level"] == "error" or entry.get("exc_info")] == []


def _check(failure: Any, number: int) -> None:
    """Check that the error blames the machine, has its message, and says when to try again if that helps."""
    expected = "MACHINE_EXHAUSTED" if number in EXHAUSTED else "MACHINE_FAULT"
    assert failure.reason == expected, failure.message
    assert failure.HasField("retry_after") == (number in EXHAUSTED)
    assert os.strerror(number) in failure.message or "Unable to read" in failure.message


@pytest.mark.parametrize("number", NUMBERS, ids=[errno.errorcode[number] for number in NUMBERS])
@pytest.mark.parametrize("place", LOADS)
def test_load_refused_by_machine_is_a_machine_fault(engine: Harness, tmp_path: Path, place: str, number: int) -> None:
    """The same model loads as soon as the machine allows it."""
    model = copy_of_embedded(tmp_path)
    request = pb.GetOrLoadRequest(model=str(model))

    with LOADS[place](model, number):
        failure = engine.run(request).failure

    _check(failure, number)
    assert engine.models == 0
    assert engine.run(request).info.outcome == pb.LOAD_OUTCOME_LOADED


@pytest.mark.parametrize("number", NUMBERS, ids=[errno.errorcode[number] for number in NUMBERS])
@pytest.mark.parametrize("place", PROMPTS)
def test_prefill_refused_by_machine_is_a_machine_fault(
    engine: Harness, tmp_path: Path, place: str, number: int
) -> None:
    """The tokenizer is not damaged and the conversation is valid: the next call is answered."""
    model = str(copy_of_embedded(tmp_path, tested=True))
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="The")])

    with PROMPTS[place](Path(model), number):
        failure = engine.run(pb.GenerateRequest(model=model, chat=chat, max_tokens=2)).failure

    _check(failure, number)
    assert engine.run(pb.GenerateRequest(model=model, text="The", max_tokens=2)).finished.usage.completion_tokens > 0


def test_template_worker_start_is_retried_next_call(engine: Harness, tmp_path: Path) -> None:
    """A fault of the machine is no strike against the template."""
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="The")])
    request = pb.GenerateRequest(model=str(copy_of_embedded(tmp_path, tested=True)), chat=chat, max_tokens=2)
    with worker(tmp_path, errno.EAGAIN):
        for _ in range(4):
            assert engine.run(request).failure.reason == "MACHINE_EXHAUSTED"

    assert engine.run(request).finished.usage.completion_tokens > 0


def test_template_worker_import_failure_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker was started and cannot read its libraries: that is no strike against the template either."""
    refusals: list[Exception] = [os_error(errno.EMFILE), MemoryError()]

    def load() -> None:
        if refusals:
            raise refusals.pop(0)

    monkeypatch.setattr(template_worker, "import_renderer", load)
    monkeypatch.setattr(template_worker, "_limit_memory", lambda: None)
    assert template_worker._prepare() == {"errno": str(errno.EMFILE)}
    assert template_worker._prepare() == {"errno": str(errno.ENOMEM)}
    assert template_worker._prepare() == {}


def test_template_worker_fault_reaches_the_caller() -> None:
    """A worker with such an answer lives on and is used again."""
    answer = f'echo \'{{"errno": "{errno.EMFILE}"}}\''
    templates = Templates(lambda: 0.0, ["sh", "-c", f"while read line; do {answer}; done"])
    try:
        for _ in range(3):
            with pytest.raises(SidecarError) as caught:
                templates.render("{{ messages }}", [], {})
            assert caught.value.reason is Reason.MACHINE_EXHAUSTED
            assert os.strerror(errno.EMFILE) in caught.value.message
    finally:
        templates.close()


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp']"),
        RuntimeError("filesystem error: temp_directory_path: No such file or directory"),
    ],
    ids=["Python", "C++"],
)
def test_missing_temporary_directory_is_named(
    engine: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Python needs the directory for copies, and MLX's compiler for compiled kernels."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    model = copy_of_embedded(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "gettempdir", fail)
        patch.setattr(tempfile, "mkdtemp", fail)
        patch.setattr(mx, "eval", fail)
        failure = engine.run(pb.GetOrLoadRequest(model=str(model))).failure

    assert failure.reason == "MACHINE_FAULT"
    assert "TMPDIR" in failure.message
    assert engine.run(pb.GetOrLoadRequest(model=str(model))).info.size_bytes > 0


@pytest.mark.skipif(sys.platform == "darwin", reason="MLX compiles with the C++ compiler on the CPU backend only")
def test_daemon_with_deleted_tmpdir_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed while it runs: the whole way, with the real library. It serves, and the caller learns what to set."""
    temporary = folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    daemon = RunningDaemon.start(folder, SERVE).serving()
    try:
        shutil.rmtree(temporary)
        with daemon.client() as client, pytest.raises(mlx_sidecar.MachineFault, match="TMPDIR"):
            client.complete("embedded", "The", max_tokens=2)
        lines = daemon.log()
    finally:
        assert daemon.stop() == 0
    assert [line["reason"] for line in lines if line.get("rpc") == "Generate"] == ["MACHINE_FAULT"]
    assert not [line for line in lines if line["level"] == "error" or "exception" in line]


def test_python_memory_error_is_a_machine_fault(
    engine: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MemoryError has no error number."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    model = copy_of_embedded(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("daemon.cache.mlx.loader.assembling", fail)
        failure = engine.run(pb.GetOrLoadRequest(model=str(model))).failure

    _check(failure, errno.ENOMEM)


def test_damaged_model_content_is_a_model_fault(engine: Harness, tmp_path: Path) -> None:
    """Files cut off, without a header, without JSON, with wrong shapes; a tokenizer file that is no tokenizer."""
    damages: list[Callable[[Path], object]] = [
        lambda model: os.truncate(model / "model.safetensors", 1000),
        lambda model: (model / "model.safetensors").write_bytes(b"x" * 100),
        lambda model: (model / "config.json").write_text("{"),
        lambda model: (model / "config.json").unlink(),
        lambda model: (model / "tokenizer.json").write_text("[]"),
    ]
    for number, damage in enumerate(damages):
        model = copy_of_embedded(tmp_path, f"damaged{number}")
        damage(model)
        assert engine.run(pb.GenerateRequest(model=str(model), text="The")).failure.reason == "MODEL_CORRUPT"


@pytest.mark.parametrize("fails", ["rows", "packing"])
def test_missing_model_ability_is_one_log_line(
    engine: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The model is used without that feature. The log line says what failed, and has no traceback."""
    target = {"rows": "daemon.kv.mlx.self_test._rows_are_exact", "packing": "daemon.kv.mlx.self_test._copy"}[fails]

    def fail(*_: Any) -> None:
        raise ValueError("[matmul] shapes do not fit")

    monkeypatch.setattr(target, fail)
    with capture_logs() as logs:
        assert engine.run(pb.GetOrLoadRequest(model=str(copy_of_embedded(tmp_path)))).info.size_bytes > 0

    lines = [entry for entry in logs if "error" in entry]
    assert [(entry["log_level"], entry["error"]) for entry in lines] == [
        ("warning", "ValueError: [matmul] shapes do not fit")
    ]
    assert not any("exc_info" in entry for entry in logs)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "base"},
        {"model_type": "no_such_thing"},
        {"model_type": "mamba"},
        {"num_attention_heads": 3, "num_key_value_heads": 3},
        {"rope_scaling": {"rope_type": "unheard of"}},
        {"vocab_size": 50},
        {"num_hidden_layers": 2},
    ],
    ids=str,
)
def test_unusable_model_is_logged_without_traceback(engine: Harness, tmp_path: Path, config: dict[str, Any]) -> None:
    """The caller and the call's line in the parent's log get the reason. The engine adds no line of its own."""
    model = copy_of_embedded(tmp_path, **config)
    with capture_logs() as logs:
        failure = engine.run(pb.GetOrLoadRequest(model=str(model))).failure

    assert failure.reason in ("MODEL_UNSUPPORTED", "MODEL_CORRUPT")
    assert logs == []
