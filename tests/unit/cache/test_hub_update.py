"""An update fetches the newest commit of a branch, which the branch stands for only once all of it can be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, errors

from daemon.cache import hub
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import write_model

OLD, NEW = "a" * 40, "b" * 40


class Cache:
    """
    A Hub cache that has one commit of org/name, and a Hub that has another one.

    Attributes:
        folder: The model's folder in the cache.
        newest: What the Hub says the newest commit is; an exception is raised.
        asked: The revisions that the Hub was asked for.
        error: Raised by a download when half of it is there; None if all comes.
        whole: Whether a download that raises nothing has brought all files.
        fetched: Commits whose files were fetched.
        sizes: Bytes that were to be afforded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest: Any = NEW
        self.asked: list[str | None] = []
        self.error: Exception | None = None
        self.whole = True
        self.fetched: list[str] = []
        self.sizes: list[int] = []
        write_model(folder / "snapshots" / OLD)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(OLD)

    def stands_for(self, branch: str = "main") -> str:
        """Return the commit that a branch stands for in the cache."""
        return (self.folder / "refs" / branch).read_text()

    def model_info(self, repo: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        """Answer as the Hub does."""
        assert (repo, timeout) == ("org/name", constants.HF_HUB_ETAG_TIMEOUT)
        self.asked.append(revision)
        if isinstance(self.newest, Exception):
            raise self.newest
        return SimpleNamespace(sha=self.newest)

    def snapshot_download(self, repo: str, *, revision: str | None, **options: Any) -> Any:
        """Find or fetch a commit, as the library does; by its commit alone, so that it moves no branch."""
        assert repo == "org/name"
        if options.get("local_files_only"):
            found = self.folder / "snapshots" / (revision if revision == NEW else OLD)
            if not found.is_dir():
                raise errors.LocalEntryNotFoundError("not cached")
            return str(found)
        assert revision == NEW
        if options.get("dry_run"):
            return [SimpleNamespace(filename="model.safetensors", file_size=100)]
        path = self.folder / "snapshots" / NEW
        shutil.rmtree(path, ignore_errors=True)
        write_model(path)
        if self.error is not None or not self.whole:
            (path / "model.safetensors").unlink()
        if self.error is not None:
            raise self.error
        self.fetched.append(NEW)
        return str(path)

    def update(self, revision: str = "", accept: Callable[[Path], None] = lambda _: None) -> Path:
        """Update org/name."""
        return hub.update(
            "org/name", revision, afford=self.sizes.append, accept=accept, report=lambda _done, _total: None
        )


@pytest.fixture(name="cache")
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    cache = Cache(tmp_path / "hub" / "models--org--name")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "snapshot_download", cache.snapshot_download)
    monkeypatch.setattr(hub, "HfApi", lambda: cache)
    return cache


@pytest.mark.parametrize(("revision", "branch"), [("", "main"), ("main", "main"), ("v2", "v2"), ("refs/pr/1",) * 2])
def test_branch_stands_for_the_new_commit_once_that_is_accepted(cache: Cache, revision: str, branch: str) -> None:
    def accept(path: Path) -> None:
        assert (path.name, hub.is_complete(path)) == (NEW, True)
        assert cache.stands_for() == OLD

    assert cache.update(revision, accept).name == NEW
    assert cache.stands_for(branch) == NEW
    assert (cache.asked, cache.sizes, cache.fetched) == ([revision or None], [100], [NEW])


def test_model_that_is_up_to_date_is_not_fetched(cache: Cache) -> None:
    """Nor is it refused for its size: it is here."""
    cache.newest = OLD
    assert cache.update().name == OLD
    assert (cache.stands_for(), cache.sizes, cache.fetched) == (OLD, [], [])


@pytest.mark.parametrize("commit", [OLD, NEW])
def test_commit_is_what_it_is(cache: Cache, commit: str) -> None:
    """The Hub is not asked what it stands for, and no branch moves."""
    assert cache.update(commit).name == commit
    assert (cache.asked, cache.stands_for()) == ([], OLD)
    assert [file.name for file in (cache.folder / "refs").iterdir()] == ["main"]


def test_branch_stays_where_a_download_breaks_off(cache: Cache) -> None:
    cache.error = RuntimeError("CAS service error")
    with pytest.raises(SidecarError, match="org/name was not updated; the Hub did not give all of it") as caught:
        cache.update()
    assert (caught.value.reason, cache.stands_for()) == (Reason.MODEL_NOT_CACHED, OLD)
    cache.error = None
    assert cache.update().name == cache.stands_for() == NEW


def test_branch_stays_where_a_download_is_not_whole(cache: Cache) -> None:
    cache.whole = False
    with pytest.raises(SidecarError, match="org/name was not updated; the Hub did not give all of it"):
        cache.update()
    assert cache.stands_for() == OLD


def test_branch_stays_where_the_new_commit_cannot_be_used(cache: Cache) -> None:
    def accept(path: Path) -> None:
        raise SidecarError(Reason.MODEL_UNSUPPORTED, path.name)

    with pytest.raises(SidecarError, match=NEW):
        cache.update(accept=accept)
    assert cache.stands_for() == OLD


def _http(kind: type[Exception]) -> Exception:
    return kind("refused", response=SimpleNamespace(headers={}, request=None, status_code=404))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("answer", "reason", "says"),
    [
        (_http(errors.GatedRepoError), Reason.MODEL_GATED, "accept its terms"),
        (_http(errors.RepositoryNotFoundError), Reason.MODEL_NOT_FOUND, "it is private"),
        (_http(errors.RevisionNotFoundError), Reason.MODEL_NOT_FOUND, "has no revision"),
        (errors.HFValidationError("org/na--me"), Reason.MODEL_NOT_FOUND, "is no Hub id"),
        (errors.OfflineModeIsEnabled("offline"), Reason.MODEL_NOT_CACHED, "was not updated; the Hub cannot be reached"),
        (_http(errors.HfHubHTTPError), Reason.MODEL_NOT_CACHED, "was not updated; the Hub cannot be reached"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), Reason.MODEL_NOT_CACHED, "is not the Hub (JSONDecode"),
        (KeyError("id"), Reason.MODEL_NOT_CACHED, "was not updated; what answers for the Hub is not the Hub"),
        (None, Reason.MODEL_NOT_CACHED, "was not updated; what answers for the Hub is not the Hub"),
        ("main", Reason.MODEL_NOT_CACHED, "was not updated; what answers for the Hub is not the Hub"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_answer_that_is_no_commit_has_its_reason(cache: Cache, answer: Any, reason: Reason, says: str) -> None:
    cache.newest = answer
    with pytest.raises(SidecarError) as caught:
        cache.update()
    assert caught.value.reason is reason
    assert says in caught.value.message
    assert (cache.stands_for(), cache.fetched) == (OLD, [])
