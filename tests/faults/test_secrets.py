"""Secrecy of prompts: none is in a log, an error or a file after any failure, and cache hits do not reveal one."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import mlx_sidecar
from mlx_sidecar import Client, Delta, Message
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.faults.nth import Injected
from tests.support.daemons import SERVE, RunningDaemon, wait_until
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Harness, generate

CANARY = "zyxkanarienvogelxyz"
TEXT = f"The {CANARY} sings. "


def failures(client: Client, folder: Path) -> list[str]:
    """Send the canary in each text field, in requests that fail, and return the errors."""
    quotes = copy_of_embedded(folder, "quotes")
    (quotes / "chat_template.jinja").write_text("{{ raise_exception('sorry: ' ~ messages[0].role) }}")
    crashes = copy_of_embedded(folder, "crashes")
    (crashes / "chat_template.jinja").write_text("{{ messages[0].content + 1 }}")
    endless = copy_of_embedded(folder, "endless")
    (endless / "chat_template.jinja").write_text("{{ 9 ** (9 ** 9) }}{{ messages[0].content }}")
    conversation = [Message("user", TEXT)]
    attempts: list[Callable[[], object]] = [
        lambda: client.complete("embedded", TEXT * 5000, max_tokens=1),
        lambda: client.complete("embedded", TEXT, top_p=7.0),
        lambda: client.complete("embedded", TEXT, stop=["x" * 300 + CANARY]),
        lambda: client.complete("embedded", TEXT, salt=CANARY * 20),
        lambda: client.complete("embedded", TEXT, logit_bias={10**6: 1.0}),
        lambda: client.complete("nobody/knows", TEXT),
        lambda: client.complete(str(quotes), conversation),
        lambda: client.complete(str(crashes), conversation),
        lambda: client.complete(str(endless), conversation),
        lambda: client.complete("embedded", conversation, tools=[mlx_sidecar.Tool("t", parameters={CANARY: 1e999})]),
    ]
    told = []
    for attempt in attempts:
        with pytest.raises((mlx_sidecar.SidecarError, ValueError)) as caught:
            attempt()
        error = caught.value
        told.append(f"{error} {error!r} {getattr(error, 'metadata', '')}")
    return told


@pytest.mark.parametrize("level", ["debug", *(pytest.param(one, marks=pytest.mark.slow) for one in ("info", "error"))])
def test_prompt_canary_is_in_no_log_error_or_file(
    start_daemon: Callable[..., RunningDaemon], folder: Path, level: str
) -> None:
    """At every level; in requests that succeed, fail, are cancelled, and are running when the engine dies."""
    daemon = start_daemon(SERVE, log_level=level)
    models = folder / "models"
    models.mkdir()
    with daemon.client() as client:
        client.complete("embedded", TEXT, max_tokens=4, salt=CANARY)
        client.complete("embedded", [Message("system", TEXT), Message("user", TEXT)], max_tokens=4)
        client.invalidate_prefix("embedded", TEXT, salt=CANARY)
        for told in failures(client, models):
            assert CANARY not in told
        with client.generate("embedded", TEXT, max_tokens=2000, ignore_eos=True) as stream:
            events = iter(stream)
            while not isinstance(next(events), Delta):
                pass
            os.kill(daemon.engine_pid(), signal.SIGSEGV)
            with pytest.raises(mlx_sidecar.EngineRestarted) as caught:
                list(events)
        assert CANARY not in str(caught.value)
        wait_until(lambda: client.stats().engine.restarts == 1, "the engine is replaced")
        client.complete("embedded", TEXT, max_tokens=1)
    assert daemon.stop() == 0
    files = [path for path in folder.rglob("*") if path.is_file() and models not in path.parents]
    assert folder / "daemon.log" in files
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_exception_quoting_a_prompt_is_redacted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its type reaches the caller; its traceback in the log has no values of variables."""
    harness = Harness(state_dir=tmp_path / "state")

    def quotes(*_: object) -> None:
        local = TEXT  # noqa: F841 - what a traceback with locals would show
        raise Injected

    monkeypatch.setattr(type(harness.engine._runner), "add", quotes)
    failure = harness.run(generate(TEXT)).failure
    assert failure.reason == "INTERNAL"
    assert CANARY not in failure.message
    harness.close()


def test_prefix_hit_of_another_salt_looks_like_a_miss(tmp_path: Path) -> None:
    """In all that a caller sees: reused tokens, computed tokens, steps, and each counter."""
    harness = Harness(state_dir=tmp_path / "state")
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    prompt = "The code of the north is seven and the code of the south is eight. " * 4

    def seen(salt: str, text: str) -> tuple[int, int, int, int, int, int]:
        before = pb.StatsResponse()
        before.CopyFrom(harness.figures)
        answer = harness.run(generate(text, max_tokens=1, cache=pb.CacheOptions(salt=salt)))
        harness.settle()
        after = harness.figures
        return (
            answer.cached,
            after.engine.prompt_tokens - before.engine.prompt_tokens,
            after.prefix_cache.hits - before.prefix_cache.hits,
            after.prefix_cache.tokens_reused - before.prefix_cache.tokens_reused,
            after.prefix_cache.inserts - before.prefix_cache.inserts,
            sum(event.generate.HasField("prefill") for event in answer.events),
        )

    miss = seen("alice", prompt)
    assert miss[0] == 0
    assert miss[1] > 0
    assert seen("bob", prompt) == miss
    assert seen("", prompt) == miss
    assert seen("alicf", prompt) == miss
    hit = seen("alice", prompt)
    assert hit[0] > 0
    assert hit[1] < miss[1]
    harness.close()
