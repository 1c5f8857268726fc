"""The log tells a fault by its class and its frames: no text of an exception, which may quote a request, is in it."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from daemon.engine.execution.runner import Runner
from daemon.kv.prefix_cache import PrefixCache
from daemon.shared import logs
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Harness, generate

CANARY = "zyxkanarienvogelxyz"


@pytest.fixture(name="log")
def _log(tmp_path: Path) -> Iterator[Path]:
    """Return a file that all logs of this process go to for a while."""
    path = tmp_path / "log"
    logs.configure("debug", path)
    yield path
    logs._install([])
    structlog.reset_defaults()


def quote(*_: object, **__: object) -> None:
    """Fail as a parser does that quotes its input."""
    json.loads(f'{{"{CANARY}')
    raise ValueError(CANARY)


@pytest.mark.parametrize(
    ("place", "name", "event"),
    [
        (PrefixCache, "lookup", "prefix_lookup_failed"),
        (PrefixCache, "store", "prefix_store_failed"),
        (Runner, "add", "unexpected_error"),
    ],
)
def test_engine_fault_is_logged_without_its_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: Path, place: Any, name: str, event: str
) -> None:
    """Its class and its frames are there; no texts of it or of the exceptions that led to it."""

    def fails(*_: object, **__: object) -> None:
        try:
            quote()
        except ValueError as error:
            raise RuntimeError(f"near {CANARY}") from error

    harness = Harness(state_dir=tmp_path / "state")
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    monkeypatch.setattr(place, name, fails)
    answer = harness.run(generate(f"the {CANARY} sings " * 20, max_tokens=1))
    harness.close()
    line = next(one for one in map(json.loads, log.read_text().splitlines()) if one["event"] == event)
    assert "RuntimeError\nwhich came of\nTraceback" in line["exception"]
    assert line["exception"].endswith("JSONDecodeError")
    assert "in quote" in line["exception"]
    if event == "unexpected_error":
        assert answer.failure.metadata["error_id"] == line["error_id"]
        assert line["error_id"] in answer.failure.message
        assert CANARY not in answer.failure.message
    assert CANARY not in log.read_text()


def test_asyncio_task_errors_are_logged_without_text(log: Path) -> None:
    """Its message has the task's exception in it."""

    async def main() -> None:
        async def fails() -> None:
            quote()

        task = asyncio.create_task(fails())
        await asyncio.sleep(0)
        del task
        gc.collect()

    asyncio.run(main())
    gc.collect()
    line = json.loads(log.read_text().splitlines()[-1])
    assert (line["logger"], line["level"]) == ("asyncio", "error")
    assert "JSONDecodeError" in line["exception"]
    assert CANARY not in log.read_text()
