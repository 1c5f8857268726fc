"""What loads found out is known in the same place from then on; a note that cannot be trusted counts for nothing."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.cache.identity import ModelKey, identify
from daemon.cache.mlx import load_notes, loader
from daemon.cache.mlx.load_notes import Kind, LoadNotes, NoteFile
from daemon.cache.mlx.measurements import MEASUREMENTS, Measurements
from daemon.cache.mlx.self_tests import VERDICTS, Verdict
from daemon.kv.mlx import workspace
from daemon.kv.mlx.guess_passes import Exactness
from daemon.kv.mlx.layout import Layout
from daemon.kv.mlx.workspace import Workspace
from daemon.shared.small_file import replace_small
from tests.support.builders import tiny_llama
from tests.unit.cache.loads import run

WORK = Workspace(((64, 100.5), (256, 292.0)), ((0, 0.0), (3072, 1.25)), 700.0)
VERDICT = Verdict(True, 64, True, Exactness.EXACT, Exactness.ROUNDED, False, True)
NOTES: dict[str, tuple[Kind[Any], Any]] = {"measurements": (MEASUREMENTS, WORK), "verdicts": (VERDICTS, VERDICT)}
FILE_NAME = MEASUREMENTS.file_name
HERE = "here"


def _file(path: Path, place: str = HERE) -> NoteFile[Workspace]:
    return NoteFile(path.parent, MEASUREMENTS, place)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "state" / FILE_NAME


@pytest.fixture(name="passes")
def _passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that gets the tokens and the context of each pass that is measured."""
    measured: list[tuple[int, int]] = []
    real = workspace._pass

    def counted(model: Any, layout: Layout, width: int, context: int) -> Any:
        measured.append((width, context))
        return real(model, layout, width, context)

    monkeypatch.setattr(workspace, "_pass", counted)
    return measured


def _load(model: Path, path: Path, place: str = HERE) -> Workspace:
    """Load a model as an engine that has just started, and wait until what it measured is on the disk."""
    measured = Measurements(LoadNotes(_file(path, place)))
    _, loaded = run(loader.load(identify("tiny", model), 0, loader.LoadSetup(lambda: 0.0, measured=measured)))
    _saved()
    return loaded.model.work


def _saved() -> None:
    for thread in threading.enumerate():
        if thread.name == "save":
            thread.join(60)


def test_second_engine_measures_no_pass(tmp_path: Path, path: Path, passes: list[tuple[int, int]]) -> None:
    model = tiny_llama(tmp_path / "model")
    work = _load(model, path)
    assert passes
    assert work.fixed
    passes.clear()

    assert _load(model, path) == work
    assert passes == []


def test_damaged_note_is_measured_again(tmp_path: Path, path: Path, passes: list[tuple[int, int]]) -> None:
    model = tiny_llama(tmp_path / "model")
    _load(model, path)
    passes.clear()
    content = json.loads(path.read_text())
    (entry,) = content["models"].values()
    entry["fixed"][0][1] = 1.0
    path.write_text(json.dumps(content))

    _load(model, path)

    assert passes
    assert _file(path).read()


def test_other_model_and_other_place_are_measured(tmp_path: Path, path: Path, passes: list[tuple[int, int]]) -> None:
    model = tiny_llama(tmp_path / "model")
    _load(model, path)
    passes.clear()
    _load(model, path, "another device")
    assert passes
    passes.clear()

    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 5000}))
    _load(model, path, "another device")
    assert passes


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda notes: {**notes, "format": notes["format"] - 1},
    "another place": lambda notes: {**notes, "place": "there"},
    "a list": lambda notes: [notes],
    "no models": lambda notes: {**notes, "models": None},
    "another digest": lambda notes: {**notes, "digest": "0"},
    "a model more": lambda notes: {**notes, "models": {**notes["models"], "x": notes["models"]["name"]}},
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("notes", NOTES)
def test_note_that_is_not_ours_counts_for_nothing(tmp_path: Path, notes: str, damage: str) -> None:
    kind, value = NOTES[notes]
    file = NoteFile(tmp_path, kind, HERE)
    file.write({"name": value})
    assert file.read() == {"name": value}
    path = tmp_path / kind.file_name
    path.write_text(json.dumps(DAMAGE[damage](json.loads(path.read_text()))))

    assert file.read() == {}


@pytest.mark.parametrize(
    "work",
    [
        Workspace((), ((0, 0.0),)),
        Workspace(((64, 1.0),), ((0, 0.0),), -1.0),
        Workspace(((64, 1.0),), ((0, 0.0),), float("nan")),
        Workspace(((64, -1.0),), ((0, 0.0),)),
        Workspace(((64, float("nan")),), ((0, 0.0),)),
        Workspace(((256, 1.0), (64, 1.0)), ((0, 0.0),)),
    ],
)
def test_figures_that_make_no_sense_are_refused(path: Path, work: Workspace) -> None:
    file = _file(path)
    file.write({"name": work})
    assert file.read() == {}


@pytest.mark.parametrize("wrong", [{"reuses": 1}, {"vocab_size": "64"}, {"guess_exactness": "SOON"}, {"views": None}])
def test_verdict_that_makes_no_sense_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    odd = replace(VERDICTS, encode=lambda verdict: {**VERDICTS.encode(verdict), **wrong})
    NoteFile(tmp_path, odd, HERE).write({"name": VERDICT})
    assert NoteFile(tmp_path, VERDICTS, HERE).read() == {}


def test_unusable_notes_are_logged(path: Path) -> None:
    replace_small(path, b"{")
    in_the_way = _file(path / FILE_NAME)

    with capture_logs() as logs:
        assert _file(path).read() == {}
        in_the_way.write({"name": WORK})

    assert [line["event"] for line in logs] == ["load_notes_read_failed", "load_notes_write_failed"]


def test_notes_in_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME)
    assert _file(tmp_path / FILE_NAME).read() == {}


def test_models_that_were_used_last_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_notes, "MOST_MODELS", 2)
    measured = Measurements(LoadNotes(_file(path)))
    layout = Layout("KVCache", 1)
    first, second, third = (ModelKey(name) for name in "abc")
    for key in (first, second):
        measured.keep(key, layout, WORK)
    assert measured.find(first, layout) == WORK
    measured.keep(third, layout, WORK)
    _saved()

    later = Measurements(LoadNotes(_file(path)))
    assert [later.find(key, layout) for key in (first, second, third)] == [WORK, None, WORK]
    assert later.find(first, Layout("RotatingKVCache", 1)) is None


class HangingNotes:
    """Notes in a state directory that hangs until the test lets it go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def read(self) -> dict[str, Workspace]:
        """Return nothing: it is the first run."""
        return {}

    def write(self, known: dict[str, Workspace]) -> None:
        """Hang."""
        assert self.go_on.wait(60)


def test_disk_that_hangs_holds_up_no_load() -> None:
    """This test would hang with it: the write ends only after what follows the request."""
    notes = HangingNotes()
    measured = Measurements(LoadNotes(notes))
    layout = Layout("KVCache", 1)

    measured.keep(ModelKey("a"), layout, WORK)

    assert measured.find(ModelKey("a"), layout) == WORK
    notes.go_on.set()
    _saved()
