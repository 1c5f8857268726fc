"""ListModels and suggestions: a disk that does not answer costs its own place, and names are compared within bounds."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from daemon.cache import listing
from daemon.cache.listing import close_names
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.engine.background import background
from daemon.engine.calls import model_places
from daemon.shared.errors import SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded
from tests.unit.engine.harness import Harness


@pytest.fixture(name="hub", autouse=True)
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a Hub cache without models."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


@pytest.fixture(name="dead")
def _dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a directory that no call comes back from until the test ends."""
    path, over = tmp_path / "dead", threading.Event()
    path.mkdir()
    look = listing.root_folders

    def hanging(root: Path) -> list[Path]:
        if root in (path, path / "other"):
            over.wait()
        return look(root)

    monkeypatch.setattr(listing, "root_folders", hanging)
    monkeypatch.setattr(model_places, "root_folders", hanging)
    yield path
    over.set()


def names(answer: pb.ListModelsResponse) -> list[str]:
    """Return the names of the models."""
    return [Path(model.model).name for model in answer.models]


def listed(harness: Harness) -> pb.ListModelsResponse:
    """Return the answer of a ListModels call."""
    return harness.finish(harness.begin(pb.ListModelsRequest()))[-1].list_models


def test_dead_disk_costs_its_own_place_alone(engine: Callable[..., Harness], tmp_path: Path, dead: Path) -> None:
    """The other places are listed after the time limit, and the dead one is named."""
    roots = tmp_path / "roots"
    roots.mkdir()
    copy_of_embedded(roots, "chat")
    harness = engine(model_roots=(roots, dead))
    call = harness.begin(pb.ListModelsRequest())
    harness.until(lambda: not harness.engine.busy)
    assert not harness.of(call)
    harness.clock_offset = model_places.ANSWER_SECONDS
    answer = harness.finish(call)[-1].list_models
    assert names(answer) == ["chat", "embedded"]
    assert [place.path for place in answer.unread] == [str(dead)]
    assert "did not answer within 5 s" in answer.unread[0].reason


def test_no_call_waits_for_lists(
    engine: Callable[..., Harness], tmp_path: Path, dead: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if they keep all of their threads at work, and give signs of life."""
    monkeypatch.setattr(background, "LATE_SECONDS", 1e9)
    other = tmp_path / "dead" / "other"
    other.mkdir()
    harness = engine(model_roots=(dead, other, EMBEDDED_PATH))
    call = harness.begin(pb.ListModelsRequest())
    assert harness.finish(harness.begin(pb.GetOrLoadRequest(model="embedded")))[-1].load.ready.architecture
    assert not harness.of(call)


def test_model_root_that_is_not_there_is_named(engine: Callable[..., Harness], tmp_path: Path) -> None:
    """A misspelled directory, or one on a disk that is away, would otherwise look like an empty one."""
    harness = engine(model_roots=(tmp_path / "none",))
    answer = harness.run(pb.ListModelsRequest()).events[-1].list_models
    assert [(place.path, place.reason) for place in answer.unread] == [
        (str(tmp_path / "none"), "model_roots names it, and there is no such directory")
    ]


def test_suggestion_does_not_wait_for_a_dead_disk(engine: Callable[..., Harness], dead: Path) -> None:
    """The error comes with what the other places have."""
    harness = engine(model_roots=(dead,), aliases={"fast": "embedded"})
    call = harness.begin(pb.GetOrLoadRequest(model="fasst"))
    harness.until(lambda: bool(harness.engine._calls))
    harness.clock_offset = model_places.NAMES_SECONDS
    failure = harness.finish(call)[-1].failure
    assert failure.reason == "MODEL_NOT_FOUND"
    assert failure.message.endswith("; did you mean fast?")


def test_model_in_memory_alone_is_listed(harness: Harness, tmp_path: Path) -> None:
    """A directory that is below no root: by its name, with its figures, as loaded."""
    path = copy_of_embedded(tmp_path, "lone")
    harness.finish(harness.begin(pb.GetOrLoadRequest(model=str(path))))
    found = {Path(model.model).name: model for model in listed(harness).models}
    assert found["lone"].loaded
    assert found["lone"].place == pb.MODEL_PLACE_UNSPECIFIED
    assert found["lone"].can.chat
    assert not found["embedded"].loaded


def test_listing_of_a_root_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In directories, in models and in depth; hidden directories and links that lead nowhere are passed over."""
    for name in ("a", "b/c/d", "b/c/d/e/too-deep", ".hidden", "x"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "loop").symlink_to("loop")
    found = [str(path.relative_to(tmp_path)) for path in listing.root_folders(tmp_path)]
    assert found == ["a", "b/c/d", "x"]
    monkeypatch.setattr(listing, "MOST_FOLDERS", 2)
    assert listing.root_folders(tmp_path) == [tmp_path / "a"]
    monkeypatch.setattr(listing, "MOST_MODELS", 0)
    assert listing.root_folders(tmp_path) == []


def test_directory_that_cannot_be_entered_hides_no_other_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of models has one, `lost+found` on Linux. A root that cannot be entered is told."""
    for name in ("a", "lost+found", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    locked, stat = tmp_path / "lost+found", os.stat

    def refusing(path: Any, *rest: Any, **named: Any) -> os.stat_result:
        if str(path).startswith(f"{locked}/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *rest, **named)

    monkeypatch.setattr(os, "stat", refusing)
    assert [path.name for path in listing.root_folders(tmp_path)] == ["a", "z"]
    with pytest.raises(SidecarError, match="let the daemon's user read it"):
        listing.root_models(locked)


def test_damaged_models_are_listed_with_their_problem(tmp_path: Path) -> None:
    """Whatever their files hold."""
    for name, text in (("no-json", "{"), ("code", '{"model_type": "a", "model_file": "x.py"}'), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    copied = copy_of_embedded(tmp_path, "template")
    (copied / "chat_template.jinja").write_bytes(b"\xff\xff")
    models = {Path(model.model).name: model for model in listing.root_models(tmp_path)}
    assert all(models[name].problem for name in ("no-json", "code", "list"))
    assert not models["template"].problem
    assert not models["template"].chat


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("qwen3-8b-4bit", ["mlx-community/Qwen3-8B-4bit", "org/other"], ["mlx-community/Qwen3-8B-4bit"]),
        ("mlx-comunity/Qwen3-8B-4bit", ["mlx-community/Qwen3-8B-4bit"], ["mlx-community/Qwen3-8B-4bit"]),
        ("embeded", ["embedded"], ["embedded"]),
        ("nothing-like-it", ["mlx-community/Qwen3-8B-4bit"], []),
        ("org/name", ["org/name"], []),
        ("x" * 1024, ["x" * 900], ["x" * 900]),
        ("/home/ada/models/gemma", ["/home/ada/models/wide"], []),
        ("/home/ada/modles/Wide", ["/home/ada/models/wide"], ["/home/ada/models/wide"]),
    ],
)
def test_close_names_find_what_was_meant(name: str, known: list[str], near: list[str]) -> None:
    """With or without the owner, in any case; a name itself is no suggestion."""
    assert close_names(name, known) == near
