"""Names become checked directories or revisions of the Hub, and a cached model waits for no download."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.digests import TakesLong
from daemon.cache.limits import ModelLimits
from daemon.cache.resolver import EMBEDDED_PATH, Resolver, Wanted
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import write_model
from tests.unit.cache.fake_hub import FakeHub, Watching
from tests.unit.cache.refusals import refusal


def test_embedded_model_ignores_model_roots(tmp_path: Path) -> None:
    source = Resolver([tmp_path]).resolve(Wanted("embedded"))

    assert (source.name, source.path) == ("embedded", EMBEDDED_PATH)


def test_an_absolute_directory_is_a_model(resolver: Resolver, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")

    assert resolver.resolve(Wanted(str(path))).path == path
    assert resolver.resolve(Wanted(f"{path}/../model/")).path == path


def test_cached_hub_id_resolves_without_a_download(resolver: Resolver, hub: FakeHub) -> None:
    assert resolver.resolve(Wanted("org/name", allow_download=True)).name == "org/name"
    assert hub.asked == [("org/name", "", False)]


def test_uncached_hub_id_downloads_with_progress(resolver: Resolver, hub: FakeHub) -> None:
    hub.absent = True
    watcher = Watching()

    source = resolver.resolve(Wanted("org/name", allow_download=True), watcher)

    assert source.name == "org/name"
    assert hub.asked == [("org/name", "", False), ("org/name", "", True)]
    assert watcher.downloads == [(1, 2)]


@pytest.mark.parametrize("wanted", [Wanted("org/name", allow_download=True), Wanted("org/name", estimate=True)])
def test_hub_is_not_contacted_without_a_watcher(resolver: Resolver, hub: FakeHub, wanted: Wanted) -> None:
    hub.absent = True

    with pytest.raises(TakesLong):
        resolver.resolve(wanted)
    assert hub.asked == [("org/name", "", False)]


def test_offline_estimate_never_asks_the_hub(resolver: Resolver, hub: FakeHub) -> None:
    """Tokenize needs files that are here, and no figures of those that are not."""
    hub.absent = True

    with pytest.raises(SidecarError) as caught:
        resolver.resolve(Wanted("org/name", estimate=True, offline=True), Watching())
    assert caught.value.reason is Reason.MODEL_NOT_CACHED
    assert hub.asked == [("org/name", "", False)]


def test_model_that_cannot_fit_is_not_downloaded(hub: FakeHub) -> None:
    hub.absent, hub.size = True, 1001
    resolver = Resolver([], hub, hub.plan, afford=ModelLimits(1000).refuse_if_never)

    with pytest.raises(SidecarError, match="needs 1001 B but model_cache_mb allows 1000 B") as caught:
        resolver.resolve(Wanted("org/name", allow_download=True), Watching())

    assert caught.value.reason is Reason.MODEL_EXCEEDS_BUDGET
    assert hub.asked == [("org/name", "", False)]


def test_estimate_of_an_uncached_model_asks_the_hub(resolver: Resolver, hub: FakeHub) -> None:
    assert resolver.planned_bytes(Wanted("org/other", estimate=True)) == 100
    with pytest.raises(SidecarError):
        resolver.planned_bytes(Wanted("org/other", revision="../x"))
    assert hub.asked == []


def test_unknown_architecture_is_refused_unread(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", model_type="brand_new")
    error = refusal(Resolver([], supported=lambda _: False), str(path))

    assert error.reason is Reason.MODEL_UNSUPPORTED
    assert "brand_new" in error.message
    assert "auto_map" not in error.message


def test_auto_map_is_named_when_its_code_is_needed(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", auto_map={"AutoModel": "modeling_evil.Model"})
    known = Resolver([], supported=lambda _: True)
    unknown = Resolver([], supported=lambda _: False)

    assert known.resolve(Wanted(str(path))).architecture == "llama"
    assert "its own code (auto_map in config.json) is never run" in refusal(unknown, str(path)).message


BAD_NAMES = """
name|a/b/c|./model|../model|~/model|org/..|a..b/c|org/na me|-org/name|Embedded|orgé/name|http://host/name|org\\name
"""


@pytest.mark.parametrize("name", ["", "org/name\n", "org/" + "x" * 97, *BAD_NAMES.strip().split("|")])
def test_invalid_model_name_does_not_ask_the_hub(resolver: Resolver, hub: FakeHub, name: str) -> None:
    error = refusal(resolver, name)

    assert (error.reason, error.field) == (Reason.MODEL_NOT_FOUND, "model")
    assert hub.asked == []


@pytest.mark.parametrize("name", ["/nowhere", "/" + "x" * 5000, "/dev/null", "/etc/passwd/model"])
def test_a_directory_that_is_not_there_is_not_found(resolver: Resolver, name: str) -> None:
    error = refusal(resolver, name)

    assert (error.reason, error.field) == (Reason.MODEL_NOT_FOUND, "model")


def test_file_as_a_model_is_told_from_a_missing_directory(resolver: Resolver, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()

    assert "is a file; name its directory" in refusal(resolver, str(tmp_path / "model.gguf")).message
    assert "there is no directory" in refusal(resolver, str(tmp_path / "none")).message


def test_model_name_with_a_null_byte_is_invalid(resolver: Resolver) -> None:
    assert refusal(resolver, "/model\0").reason is Reason.INVALID_ARGUMENT
    assert refusal(resolver, "embedded", adapter="relative").reason is Reason.INVALID_ARGUMENT


def test_symlink_loop_is_not_found(resolver: Resolver, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")

    assert refusal(resolver, str(tmp_path / "one")).reason is Reason.MODEL_NOT_FOUND


def test_a_revision_is_for_hub_ids_only(resolver: Resolver, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")

    for name in (str(path), "embedded"):
        error = refusal(resolver, name, revision="main")
        assert (error.reason, error.field) == (Reason.INVALID_ARGUMENT, "revision")
    assert resolver.resolve(Wanted(str(path), revision="")).path == path


def test_default_revision_is_the_last_requested(resolver: Resolver, hub: FakeHub) -> None:
    for revision in (None, "v2", None, "", None):
        resolver.resolve(Wanted("org/name", revision=revision))

    assert [revision for _, revision, _ in hub.asked] == ["", "v2", "v2", "", ""]


def test_estimate_keeps_the_remembered_revision(resolver: Resolver, hub: FakeHub) -> None:
    resolver.resolve(Wanted("org/name", revision="v2"))
    resolver.resolve(Wanted("org/name", revision="main", estimate=True))
    resolver.resolve(Wanted("org/name"))

    assert [revision for _, revision, _ in hub.asked] == ["v2", "main", "v2"]


def test_unknown_revision_is_not_remembered(resolver: Resolver, hub: FakeHub) -> None:
    refusal(resolver, "org/missing", revision="v2")
    refusal(resolver, "org/missing")

    assert [revision for _, revision, _ in hub.asked] == ["v2", ""]


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0-rc+2", "a" * 40, "feature/x_y"])
def test_branches_tags_and_commits_are_revisions(resolver: Resolver, hub: FakeHub, revision: str) -> None:
    resolver.resolve(Wanted("org/name", revision=revision))

    assert hub.asked == [("org/name", revision, False)]


@pytest.mark.parametrize(
    "revision", ["..", "../../../etc", "/etc", "a/../b", "a//b", "a/", ".git", "a b", "a\0", "a\n"]
)
def test_revision_escaping_the_hub_cache_is_invalid(resolver: Resolver, hub: FakeHub, revision: str) -> None:
    error = refusal(resolver, "org/name", revision=revision)

    assert (error.reason, error.field) == (Reason.INVALID_ARGUMENT, "revision")
    assert hub.asked == []


class SlowHub(FakeHub):
    """A Hub with downloads that take until the test lets them end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.downloading = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.at_once = 0
        self.most_at_once = 0

    def __call__(self, repo: str, revision: str, *, allow_download: bool, report: Any) -> Path:
        if not allow_download:
            if repo == "org/slow":
                raise SidecarError(Reason.MODEL_NOT_CACHED, "not yet")
            return super().__call__(repo, revision, allow_download=False, report=report)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.downloading.release()
        assert self.go_on.wait(60)
        self.at_once -= 1
        return super().__call__(repo, revision, allow_download=True, report=report)


def test_downloads_of_one_model_run_one_at_a_time(tmp_path: Path) -> None:
    for name in ("slow", "name", "other"):
        write_model(tmp_path / f"org--{name}")
    hub = SlowHub(tmp_path)
    resolver = Resolver([], hub, hub.plan)
    wanted = Wanted("org/slow", allow_download=True)
    threads = [threading.Thread(target=lambda: resolver.resolve(wanted, Watching()), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert hub.downloading.acquire(timeout=60)

    assert resolver.resolve(Wanted("org/name")).name == "org/name"
    assert resolver.resolve(Wanted("org/other")).name == "org/other"

    hub.go_on.set()
    for thread in threads:
        thread.join(60)
    assert hub.most_at_once == 1
    assert len(hub.asked) == 5
