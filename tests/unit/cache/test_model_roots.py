"""Models and adapters lie below the allowed roots, however a path is spelled or linked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.cache.model_files import lies_in
from daemon.cache.resolver import Resolver, Wanted
from daemon.shared.errors import Reason
from tests.support.builders import write_adapter, write_model
from tests.unit.cache.refusals import refusal


def test_model_roots_allow_their_subdirectories(tmp_path: Path) -> None:
    inside = write_model(tmp_path / "models" / "a")
    resolver = Resolver([tmp_path / "other", tmp_path / "models"])

    assert resolver.resolve(Wanted(str(inside))).path == inside


@pytest.mark.parametrize("way", ["beside", "traversal", "link", "same beginning"])
def test_model_roots_refuse_every_escape(tmp_path: Path, way: str) -> None:
    outside = write_model(tmp_path / "secret")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(outside)
    names = {
        "beside": outside,
        "traversal": tmp_path / "models" / ".." / "secret",
        "link": tmp_path / "models" / "link",
        "same beginning": write_model(tmp_path / "models-of-others"),
    }

    error = refusal(Resolver([tmp_path / "models"]), str(names[way]))

    assert error.reason is Reason.MODEL_NOT_FOUND
    assert "model_roots" in error.message


def test_symlinked_model_roots_allow_their_targets(tmp_path: Path) -> None:
    path = write_model(tmp_path / "disk" / "a")
    (tmp_path / "models").symlink_to(tmp_path / "disk")

    assert Resolver([tmp_path / "models"]).resolve(Wanted(str(tmp_path / "models" / "a"))).path == path


@pytest.mark.parametrize("same", [True, False], ids=["same directory", "another directory"])
def test_other_spelling_of_a_model_root_is_that_root(monkeypatch: pytest.MonkeyPatch, *, same: bool) -> None:
    """macOS finds a directory by any case and form of Unicode. Where they name two directories, only one is allowed."""
    monkeypatch.setattr(os.path, "samefile", lambda one, other: same)
    root = Path("/Volumes/Donn\u00e9es")
    assert lies_in(Path("/volumes/Donne\u0301es/model"), [root]) is same
    assert not lies_in(Path("/volumes/Dossiers/model"), [root]), "not even its name is alike"


def test_missing_directory_outside_roots_is_indistinct(tmp_path: Path) -> None:
    write_model(tmp_path / "secret")
    resolver = Resolver([tmp_path / "models"])

    there, not_there = (refusal(resolver, str(tmp_path / name)) for name in ("secret", "nothing"))

    assert there.message.replace("secret", "") == not_there.message.replace("nothing", "")


def test_model_roots_apply_to_adapters(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models" / "a")
    inside, outside = write_adapter(tmp_path / "models" / "adapter"), write_adapter(tmp_path / "adapter")
    resolver = Resolver([tmp_path / "models"])

    assert resolver.resolve(Wanted(str(model), adapter=str(inside))).adapter_path == inside
    error = refusal(resolver, str(model), adapter=str(outside))
    assert (error.reason, error.field) == (Reason.MODEL_NOT_FOUND, "adapter")
