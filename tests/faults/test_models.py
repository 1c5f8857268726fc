"""Rows 37 to 50 of the fault table that other tests do not cover: models and their files."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mlx_sidecar
from mlx_sidecar import Delta
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.faults.raw import call
from tests.support.daemons import RunningDaemon
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Harness


@pytest.mark.parametrize(
    "name", ["../../etc", "~", "~/models", "/etc/passwd", "a" * 1024, "org/\udcff", "org/name\n", "-", "org//name"]
)
def test_model_name_that_escapes_its_root_is_refused(real: RunningDaemon, name: str) -> None:
    """Row 37: NOT_FOUND, or the caller's fault; nothing is opened."""
    data = pb.GetOrLoadRequest(model="x").SerializeToString()[:0] + _named(name)
    refusal = call(real, "GetOrLoad", data)
    assert refusal.reason in ("MODEL_NOT_FOUND", "INVALID_ARGUMENT")


def _named(name: str) -> bytes:
    encoded = name.encode("utf-8", "surrogateescape")
    length = len(encoded)
    return b"\x0a" + (bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])) + encoded


@pytest.mark.parametrize(
    "text",
    [
        '{"model": ' * 100_000,
        "[]",
        '{"model": {"type": "BPE", "vocab": [], "merges": []}}',
        '{"version": "1.0", "model": {"type": "Unigram", "vocab": [["a", 1e400]]}}',
        '{"version": "1.0", "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}, "model": {"type": "BPE"}}',
        "\0" * 1_000_000,
    ],
    ids=["deep", "list", "no vocab", "infinite", "bad regex", "zeros"],
)
def test_invalid_tokenizer_file_is_corrupt(real: RunningDaemon, folder: Path, text: str) -> None:
    """Row 43: found where it is loaded, off the MLX thread; the parent never reads it."""
    model = copy_of_embedded(folder)
    (model / "tokenizer.json").write_text(text)
    with real.client() as client, pytest.raises(mlx_sidecar.ModelCorrupt, match="tokenizer"):
        client.complete(str(model), "hello")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.txt"])
def test_oversized_tokenizer_file_is_not_read(real: RunningDaemon, folder: Path, name: str) -> None:
    """Row 43: two gigabytes, of which none is on the disk."""
    model = copy_of_embedded(folder)
    with (model / name).open("ab") as file:
        os.truncate(file.fileno(), 2 << 30)
    with real.client() as client, pytest.raises(mlx_sidecar.ModelCorrupt, match=f"{name}.*bytes"):
        client.complete(str(model), "hello")


def test_truncating_loaded_weights_harms_no_stream(real: RunningDaemon, folder: Path) -> None:
    """Row 45: the loaded copy goes on, the file is another model now, and a damaged one."""
    model = copy_of_embedded(folder)
    with real.client() as client:
        expected = client.complete(str(model), "The code of", max_tokens=64, ignore_eos=True).text
        client.invalidate_model(str(model), weights=False)
        with client.generate(str(model), "The code of", max_tokens=64, ignore_eos=True) as stream:
            events = iter(stream)
            while not isinstance(event := next(events), Delta):
                pass
            os.truncate(model / "model.safetensors", 100_000)
            text = event.text + "".join(one.text for one in events if isinstance(one, Delta))
        assert text == expected
        with pytest.raises(mlx_sidecar.ModelCorrupt):
            client.complete(str(model), "The code of", max_tokens=1)


def test_caller_of_a_stalled_load_gets_its_deadline(target: RunningDaemon) -> None:
    """Row 47: and the load is given up."""
    data = pb.GetOrLoadRequest(model="hold").SerializeToString()
    assert call(target, "GetOrLoad", data, timeout=0.5).code.name == "DEADLINE_EXCEEDED"


def test_concurrent_callers_of_nine_models_all_get_one(folder: Path) -> None:
    """Row 48: one load for each content, for any number of callers, and no model in use is evicted."""
    models = [str(copy_of_embedded(folder, f"m{number}")) for number in range(8)]
    for model in models:
        config = Path(model, "config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), "copy": model}))
    harness = Harness(state_dir=folder / "state", max_models=4)
    calls = [harness.begin(pb.GetOrLoadRequest(model=models[0])) for _ in range(32)]
    calls += [harness.begin(pb.GetOrLoadRequest(model=models[number % 8])) for number in range(32)]
    outcomes = [harness.finish(one)[-1] for one in calls]
    assert all(last.load.HasField("ready") for last in outcomes)
    harness.settle()
    stats = harness.figures.model_cache
    assert stats.cached_models <= 4
    assert stats.total_hits + stats.total_misses == 64
    harness.close()


def test_invalidating_everything_spares_active_streams(real: RunningDaemon, folder: Path) -> None:
    """Row 49: eight streams go on to their end, whatever is dropped under them."""
    model = str(copy_of_embedded(folder))

    def answer(number: int) -> str:
        with real.client() as client:
            return client.complete(model, f"The code of {number} is", max_tokens=40, ignore_eos=True).text

    with real.client() as client:
        expected = [answer(number) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(answer, number) for number in range(8)]
            while not all(one.done() for one in answers):
                client.invalidate_model(model)
        assert [one.result() for one in answers] == expected
