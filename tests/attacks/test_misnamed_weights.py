"""The key of a model is that of the loaded bytes, even if the stamp or the name of its file says otherwise."""

from __future__ import annotations

import hashlib
import mmap
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.cache.digests import SETTLED_NS, Digests, Stamp
from daemon.cache.resolver import EMBEDDED_PATH, Resolver
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import PATIENCE, Harness, Reference, generate

PROMPT = "The code of"


@pytest.fixture(name="harness")
def _harness(tmp_path: Path) -> Iterator[Harness]:
    """Return an engine with a clock that is long after all files were written."""
    harness = Harness(state_dir=tmp_path / "state")
    harness.engine._services.lookup._resolver._digests._now_ns = lambda: time.time_ns() + 2 * SETTLED_NS
    yield harness
    harness.close()


@pytest.fixture(name="pair")
def _pair(folder: Path) -> tuple[Path, Path]:
    """Return two directories of the same content."""
    one = copy_of_embedded(folder, "one")
    return one, Path(shutil.copytree(one, folder / "two"))


def _other_weights(path: Path) -> bytes:
    """Return a file with the same header and other values: each value takes the place of another."""
    content = (path / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    return content[:begin] + content[begin + 1000 :] + content[begin : begin + 1000]


@contextmanager
def _mapped(file: Path) -> Iterator[Callable[[bytes], None]]:
    """
    Map a file, dirty its pages, and yield a function that rewrites the file through the mapping.

    The system notes the time of the first write to a clean page only, so that the stamp does not tell of later ones.
    """
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapping:

        def write(content: bytes) -> None:
            mapping[:] = content

        write(bytes(mapping))  # dirties all pages
        yield write


@contextmanager
def _silently_rewritten(file: Path, content: bytes, known: Callable[[], object]) -> Iterator[None]:
    """Let the engine hash a file, and rewrite it without a change of its stamp."""
    with _mapped(file) as write:
        known()
        before = Stamp.of(file)
        write(content)
        if Stamp.of(file) != before:
            pytest.skip("this system notes the time of every write through a mapping")
        yield


def _estimated(harness: Harness, path: Path) -> str:
    """Return the name of a model's content, before it is loaded."""
    return harness.run(pb.GetOrLoadRequest(model=str(path), estimate_only=True)).info.fingerprint


def _answer(harness: Harness, path: Path, **fields: object) -> tuple[str, list[int]]:
    answer = harness.run(generate(PROMPT, model=str(path), max_tokens=12, **fields))
    assert not answer.failure.reason, answer.failure
    return answer.text, answer.ids


@pytest.fixture(name="expected")
def _expected() -> list[int]:
    """Return the answer of plain mlx-lm with the sound weights."""
    reference = Reference(EMBEDDED_PATH)
    return reference.greedy(reference.tokenizer.encode(PROMPT), 12)[0]


@pytest.mark.parametrize("mode", [pb.CACHE_MODE_UNSPECIFIED, pb.CACHE_MODE_BYPASS])
def test_rewritten_weights_do_not_poison_other_copies(
    harness: Harness, pair: tuple[Path, Path], expected: list[int], mode: pb.CacheMode
) -> None:
    """They are loaded first, under the old key of their file. The untouched copy still gives its own answers."""
    rewritten, untouched = pair
    cache = pb.CacheOptions(mode=mode)
    names: list[str] = []
    content = _other_weights(rewritten)
    with (
        _silently_rewritten(
            rewritten / "model.safetensors", content, lambda: names.append(_estimated(harness, rewritten))
        ),
        capture_logs() as logs,
    ):
        other = _answer(harness, rewritten, cache=cache)
        sound = _answer(harness, untouched, cache=cache)

    assert sound[1] == expected
    assert other != sound
    loaded = {model.info.model: model.info.fingerprint for model in harness.figures.models}
    assert loaded[str(untouched)] == names[0]
    assert loaded[str(rewritten)] != names[0]
    assert [line["file"] for line in logs if line["event"] == "weight_file_changed"] == ["model.safetensors"]
    harness.settle()


def _until_waiting(harness: Harness, count: int) -> None:
    """Let so many calls wait for the same load, without a slice of it."""
    jobs = harness.engine._models._loads._jobs
    while not any(len(job.tickets) == count for job in jobs.values()):
        harness._inbox.get(timeout=PATIENCE)()
        harness.engine._calls.poll()


def test_shared_load_does_not_share_a_misnamed_file(
    harness: Harness, pair: tuple[Path, Path], expected: list[int]
) -> None:
    """Both wait for the load of the rewritten copy. Each call gets the answer of its own copy, and no error."""
    rewritten, untouched = pair
    for path in pair:
        _estimated(harness, path)
    content = _other_weights(rewritten)
    with _silently_rewritten(rewritten / "model.safetensors", content, lambda: _estimated(harness, rewritten)):
        loads = [harness.begin(pb.GetOrLoadRequest(model=str(rewritten)))]
        _until_waiting(harness, 1)
        loads.append(harness.begin(pb.GetOrLoadRequest(model=str(untouched))))
        calls = [harness.begin(generate(PROMPT, model=str(path), max_tokens=12)) for path in (rewritten, untouched)]
        _until_waiting(harness, 4)
        ends = [harness.finish(call)[-1] for call in (*calls, *loads)]

    assert not [end for end in ends if end.HasField("failure")]
    assert ends[2].load.ready.fingerprint != ends[3].load.ready.fingerprint
    ids = [[i for e in harness.of(call) for i in e.generate.delta.token_ids] for call in calls]
    assert ids[1] == expected
    assert ids[0] != expected
    harness.settle()


def test_rewritten_draft_model_is_looked_up_again(harness: Harness, folder: Path, expected: list[int]) -> None:
    """The call goes on. The draft guesses worse, and the answer is that of the model."""
    draft = copy_of_embedded(folder)
    names: list[str] = []
    weights, content = draft / "model.safetensors", _other_weights(draft)
    with _silently_rewritten(weights, content, lambda: names.append(_estimated(harness, draft))):
        assert _answer(harness, EMBEDDED_PATH, draft_model=str(draft))[1] == expected

    loaded = {model.info.model: model.info.fingerprint for model in harness.figures.models}
    assert loaded.keys() == {str(EMBEDDED_PATH), str(draft)}
    assert loaded[str(draft)] != names[0]
    harness.settle()


def test_hub_blob_with_wrong_content_is_another_model(harness: Harness, folder: Path, expected: list[int]) -> None:
    """It has the name of the sound weights, and is loaded before them."""
    sound = copy_of_embedded(folder, "sound")
    snapshot = folder / "models--org--name" / "snapshots" / ("a" * 40)
    shutil.copytree(sound, snapshot)
    content = (sound / "model.safetensors").read_bytes()
    blob = snapshot.parent.parent / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(_other_weights(sound))
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    resolver = Resolver([], lambda *_, **__: snapshot, digests=harness.engine._services.lookup._resolver._digests)
    harness.engine._services.lookup._resolver = resolver

    misnamed = harness.run(generate(PROMPT, model="org/name", max_tokens=12))
    ids = _answer(harness, sound)[1]

    assert misnamed.ids
    assert ids == expected
    assert misnamed.ids != expected
    assert len({model.info.fingerprint for model in harness.figures.models}) == 2
    again = harness.run(pb.GetOrLoadRequest(model="org/name"))
    assert again.info.outcome == pb.LOAD_OUTCOME_HIT


def test_directories_of_equal_content_are_one_model(harness: Harness, pair: tuple[Path, Path]) -> None:
    one, two = (harness.run(pb.GetOrLoadRequest(model=str(path))) for path in pair)

    assert (one.info.outcome, two.info.outcome) == (pb.LOAD_OUTCOME_LOADED, pb.LOAD_OUTCOME_HIT)
    assert one.info.fingerprint == two.info.fingerprint


def test_learned_weight_digest_outlives_a_wrong_name(tmp_path: Path) -> None:
    """A file that was written just now is no exception: its digest is not kept, and its name is not trusted again."""
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"other")
    true = hashlib.sha256(b"other").hexdigest()
    for now in (time.time_ns() + 2 * SETTLED_NS, blob.stat().st_ctime_ns):
        digests = Digests(now_ns=lambda now=now: now)  # type: ignore[misc]
        assert digests.digest(blob, hub=True) == "ab" * 32
        digests.learn(blob, Stamp.of(blob), true)
        assert digests.digest(blob, hub=True) == true
