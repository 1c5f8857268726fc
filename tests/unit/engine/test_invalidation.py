"""Invalidation: what runs goes on as it was, and nothing that comes later reuses what was dropped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.engine.calls.invalidate import invalidate
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Answer, Harness, generate
from tools.embedded import corpus

PROMPT = next(corpus.held_out(seed=20, tokens_hint=300)).completion()
LONG = pb.Stop(ignore_eos=True)
ALL = pb.InvalidateRequest(all=pb.AllTarget(weights=True, prefixes=True))
MODEL = pb.InvalidateRequest(model=pb.ModelTarget(model="embedded", prefixes=True))
PREFIX = pb.InvalidateRequest(prefix=pb.PrefixTarget(model="embedded", text=PROMPT[:100]))


@pytest.mark.parametrize("request_", [ALL, MODEL, PREFIX], ids=["all", "model", "prefix"])
def test_stream_survives_its_models_invalidation(harness: Harness, request_: pb.InvalidateRequest) -> None:
    """It gives the answer that it would have given; a later request finds nothing."""
    expected = harness.run(generate(PROMPT, max_tokens=40, stop=LONG)).content
    call = harness.begin(generate(PROMPT, max_tokens=40, stop=LONG))
    harness.until(lambda: harness.decoding(call))
    answer = harness.run(request_).invalidated
    assert answer.blocks > 0
    assert answer.bytes_in_use > 0
    assert Answer(harness.finish(call)).content == expected
    assert harness.run(generate(PROMPT)).cached == 0
    harness.settle()


def test_prefix_of_an_unloaded_model_can_be_dropped(harness: Harness) -> None:
    """Prefixes outlive their model's stay in memory; the model may come back, what was dropped may not."""
    harness.run(generate(PROMPT))
    harness.run(pb.InvalidateRequest(model=pb.ModelTarget(model="embedded", weights=True)))
    assert harness.models == 0
    dry = pb.InvalidateRequest(prefix=PREFIX.prefix, dry_run=True)
    assert harness.run(dry).invalidated.blocks == harness.run(PREFIX).invalidated.blocks > 0
    assert harness.run(generate(PROMPT)).cached == 0


def test_prefix_of_another_salt_or_text_stays(harness: Harness) -> None:
    """Only what begins with the prefix, under the salt that was named."""
    harness.run(generate(PROMPT, cache=pb.CacheOptions(salt="s")))
    assert harness.run(PREFIX).invalidated.blocks == 0
    other = pb.PrefixTarget(model="embedded", text="something else entirely", salt="s")
    assert harness.run(pb.InvalidateRequest(prefix=other)).invalidated.blocks == 0
    assert harness.run(generate(PROMPT, cache=pb.CacheOptions(salt="s"))).cached > 0


def test_prefixes_of_a_deleted_model_can_be_dropped(harness: Harness, tmp_path: Path) -> None:
    """By token ids; a text would need the tokenizer, which is gone too."""
    path = copy_of_embedded(tmp_path)
    ids = pb.TokenIds(ids=range(5, 45))
    request = pb.GenerateRequest(model=str(path), tokens=ids, max_tokens=1)
    harness.run(request)
    kept = shutil.copytree(path, tmp_path / "kept")
    shutil.rmtree(path)
    text = pb.PrefixTarget(model=str(path), text="The")
    assert harness.run(pb.InvalidateRequest(prefix=text)).failure.reason == "MODEL_NOT_FOUND"
    dropped = harness.run(pb.InvalidateRequest(prefix=pb.PrefixTarget(model=str(path), tokens=ids)))
    assert dropped.invalidated.blocks == 3
    request.model = str(kept)
    assert harness.run(request).cached == 0
    never = pb.PrefixTarget(model="/never/seen", tokens=ids)
    assert harness.run(pb.InvalidateRequest(prefix=never)).failure.reason == "MODEL_NOT_FOUND"
    harness.settle()


@pytest.mark.parametrize("reason", [Reason.MODEL_NOT_RESPONDING, Reason.MACHINE_EXHAUSTED, Reason.MACHINE_FAULT])
def test_name_that_cannot_be_looked_up_is_an_error(reason: Reason) -> None:
    """The disk may have its prefixes under another name; an answer of OK would promise that they are gone."""

    def find(*_: object) -> Iterator[None]:
        raise SidecarError(reason, "the disk hangs")
        yield

    catalog = SimpleNamespace(of_model=lambda name: ())
    services: Any = SimpleNamespace(
        disk=SimpleNamespace(opening=False, open=False, enabled=True, catalog=catalog),
        names=SimpleNamespace(keys=lambda name: set()),
        lookup=SimpleNamespace(find=find),
    )
    with pytest.raises(SidecarError, match="the disk hangs"):
        list(invalidate(services, SimpleNamespace(), 1, MODEL))  # type: ignore[arg-type]
