"""Names become checked directories below the allowed roots, and a cached model waits for no download."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.digests import TakesLong
from daemon.cache.limits import ModelLimits
from daemon.cache.resolver import EMBEDDED_PATH, Resolver, Wanted
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import write_adapter, write_model


class Watching:
    """A watcher that notes the progress it gets."""

    def __init__(self) -> None:
        self.downloads: list[tuple[int, int]] = []
        self.reads: list[tuple[int, int]] = []

    def downloading(self, done: int, total: int) -> None:
        """Note it."""
        self.downloads.append((done, total))

    def reading(self, done: int, total: int) -> None:
        """Note it."""
        self.reads.append((done, total))


class FakeHub:
    """
    A Hub with each repository in a folder. It notes the calls.

    Attributes:
        asked: Repository, revision and whether it might be downloaded, of each call.
        absent: Whether nothing is in the local cache.
        size: Bytes that it says a model has.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, str, bool]] = []
        self.absent = False
        self.size = 100
        self._folder = folder

    def __call__(self, repo: str, revision: str, *, allow_download: bool, report: Any) -> Path:
        self.asked.append((repo, revision, allow_download))
        path = self._folder / repo.replace("/", "--")
        if not path.is_dir() or (self.absent and not allow_download):
            raise SidecarError(Reason.MODEL_NOT_CACHED, f"{repo} is not cached")
        if self.absent:
            report(1, 2)
        return path

    def plan(self, _repo: str, _revision: str) -> int:
        """Return the size of a model."""
        return self.size


@pytest.fixture(name="hub")
def _hub(tmp_path: Path) -> FakeHub:
    write_model(tmp_path / "hub" / "org--name")
    return FakeHub(tmp_path / "hub")


@pytest.fixture(name="resolver")
def _resolver(hub: FakeHub) -> Resolver:
    return Resolver([], hub, hub.plan)


def _refusal(resolver: Resolver, name: str, **options: Any) -> SidecarError:
    with pytest.raises(SidecarError) as caught:
        resolver.resolve(Wanted(name, **options))
    return caught.value


def test_embedded_is_the_model_that_ships_with_the_daemon_whatever_the_roots(tmp_path: Path) -> None:
    source = Resolver([tmp_path]).resolve(Wanted("embedded"))

    assert (source.name, source.path) == ("embedded", EMBEDDED_PATH)


def test_an_absolute_directory_is_a_model(resolver: Resolver, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")

    assert resolver.resolve(Wanted(str(path))).path == path
    assert resolver.resolve(Wanted(f"{path}/../model/")).path == path


def test_a_hub_id_that_is_cached_is_found_without_a_download_even_if_one_is_allowed(
    resolver: Resolver, hub: FakeHub
) -> None:
    assert resolver.resolve(Wanted("org/name", allow_download=True)).name == "org/name"
    assert hub.asked == [("org/name", "", False)]


def test_a_hub_id_that_is_not_cached_is_fetched_with_progress(resolver: Resolver, hub: FakeHub) -> None:
    hub.absent = True
    watcher = Watching()

    source = resolver.resolve(Wanted("org/name", allow_download=True), watcher)

    assert source.name == "org/name"
    assert hub.asked == [("org/name", "", False), ("org/name", "", True)]
    assert watcher.downloads == [(1, 2)]


@pytest.mark.parametrize("wanted", [Wanted("org/name", allow_download=True), Wanted("org/name", estimate=True)])
def test_without_a_watcher_nothing_is_fetched_and_nothing_asked_of_the_hub(
    resolver: Resolver, hub: FakeHub, wanted: Wanted
) -> None:
    hub.absent = True

    with pytest.raises(TakesLong):
        resolver.resolve(wanted)
    assert hub.asked == [("org/name", "", False)]


def test_a_model_that_can_never_fit_is_refused_before_its_download(hub: FakeHub) -> None:
    hub.absent, hub.size = True, 1001
    resolver = Resolver([], hub, hub.plan, afford=ModelLimits(1000).refuse_if_never)

    with pytest.raises(SidecarError, match="needs 1001 B but model_cache_mb allows 1000 B") as caught:
        resolver.resolve(Wanted("org/name", allow_download=True), Watching())

    assert caught.value.reason is Reason.MODEL_EXCEEDS_BUDGET
    assert hub.asked == [("org/name", "", False)]


def test_an_estimate_of_what_is_not_here_is_the_size_that_the_hub_tells(resolver: Resolver, hub: FakeHub) -> None:
    assert resolver.planned_bytes(Wanted("org/other", estimate=True)) == 100
    with pytest.raises(SidecarError):
        resolver.planned_bytes(Wanted("org/other", revision="../x"))
    assert hub.asked == []


def test_an_architecture_that_mlx_lm_does_not_know_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", model_type="brand_new")
    error = _refusal(Resolver([], supported=lambda _: False), str(path))

    assert error.reason is Reason.MODEL_UNSUPPORTED
    assert "brand_new" in error.message
    assert "auto_map" not in error.message


def test_auto_map_is_named_where_only_the_code_of_the_model_could_build_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", auto_map={"AutoModel": "modeling_evil.Model"})
    known = Resolver([], supported=lambda _: True)
    unknown = Resolver([], supported=lambda _: False)

    assert known.resolve(Wanted(str(path))).architecture == "llama"
    assert "its own code (auto_map in config.json) is never run" in _refusal(unknown, str(path)).message


BAD_NAMES = """
name|a/b/c|./model|../model|~/model|org/..|a..b/c|org/na me|-org/name|Embedded|orgé/name|http://host/name|org\\name
"""


@pytest.mark.parametrize("name", ["", "org/name\n", "org/" + "x" * 97, *BAD_NAMES.strip().split("|")])
def test_what_is_no_name_is_not_found_and_the_hub_is_not_asked(resolver: Resolver, hub: FakeHub, name: str) -> None:
    error = _refusal(resolver, name)

    assert (error.reason, error.field) == (Reason.MODEL_NOT_FOUND, "model")
    assert hub.asked == []


@pytest.mark.parametrize("name", ["/nowhere", "/" + "x" * 5000, "/dev/null", "/etc/passwd/model"])
def test_a_directory_that_is_not_there_is_not_found(resolver: Resolver, name: str) -> None:
    error = _refusal(resolver, name)

    assert (error.reason, error.field) == (Reason.MODEL_NOT_FOUND, "model")


def test_a_name_with_a_zero_in_it_is_invalid(resolver: Resolver) -> None:
    assert _refusal(resolver, "/model\0").reason is Reason.INVALID_ARGUMENT
    assert _refusal(resolver, "embedded", adapter="relative").reason is Reason.INVALID_ARGUMENT


def test_a_loop_of_links_is_not_found(resolver: Resolver, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")

    assert _refusal(resolver, str(tmp_path / "one")).reason is Reason.MODEL_NOT_FOUND


def test_roots_allow_what_lies_below_them(tmp_path: Path) -> None:
    inside = write_model(tmp_path / "models" / "a")
    resolver = Resolver([tmp_path / "other", tmp_path / "models"])

    assert resolver.resolve(Wanted(str(inside))).path == inside


@pytest.mark.parametrize("way", ["beside", "traversal", "link", "same beginning"])
def test_roots_refuse_every_way_out(tmp_path: Path, way: str) -> None:
    outside = write_model(tmp_path / "secret")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(outside)
    names = {
        "beside": outside,
        "traversal": tmp_path / "models" / ".." / "secret",
        "link": tmp_path / "models" / "link",
        "same beginning": write_model(tmp_path / "models-of-others"),
    }

    error = _refusal(Resolver([tmp_path / "models"]), str(names[way]))

    assert error.reason is Reason.MODEL_NOT_FOUND
    assert "model_roots" in error.message


def test_roots_that_are_links_allow_what_they_lead_to(tmp_path: Path) -> None:
    path = write_model(tmp_path / "disk" / "a")
    (tmp_path / "models").symlink_to(tmp_path / "disk")

    assert Resolver([tmp_path / "models"]).resolve(Wanted(str(tmp_path / "models" / "a"))).path == path


def test_a_missing_directory_outside_the_roots_is_told_no_differently(tmp_path: Path) -> None:
    write_model(tmp_path / "secret")
    resolver = Resolver([tmp_path / "models"])

    there, not_there = (_refusal(resolver, str(tmp_path / name)) for name in ("secret", "nothing"))

    assert there.message.replace("secret", "") == not_there.message.replace("nothing", "")


def test_adapters_obey_the_roots_too(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models" / "a")
    inside, outside = write_adapter(tmp_path / "models" / "adapter"), write_adapter(tmp_path / "adapter")
    resolver = Resolver([tmp_path / "models"])

    assert resolver.resolve(Wanted(str(model), adapter=str(inside))).adapter_path == inside
    error = _refusal(resolver, str(model), adapter=str(outside))
    assert (error.reason, error.field) == (Reason.MODEL_NOT_FOUND, "adapter")


def test_a_revision_is_for_hub_ids_only(resolver: Resolver, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model")

    for name in (str(path), "embedded"):
        error = _refusal(resolver, name, revision="main")
        assert (error.reason, error.field) == (Reason.INVALID_ARGUMENT, "revision")
    assert resolver.resolve(Wanted(str(path), revision="")).path == path


def test_no_revision_means_the_one_that_was_asked_for_last(resolver: Resolver, hub: FakeHub) -> None:
    for revision in (None, "v2", None, "", None):
        resolver.resolve(Wanted("org/name", revision=revision))

    assert [revision for _, revision, _ in hub.asked] == ["", "v2", "v2", "", ""]


def test_an_estimate_does_not_change_which_revision_answers(resolver: Resolver, hub: FakeHub) -> None:
    resolver.resolve(Wanted("org/name", revision="v2"))
    resolver.resolve(Wanted("org/name", revision="main", estimate=True))
    resolver.resolve(Wanted("org/name"))

    assert [revision for _, revision, _ in hub.asked] == ["v2", "main", "v2"]


def test_a_revision_that_was_not_found_is_not_remembered(resolver: Resolver, hub: FakeHub) -> None:
    _refusal(resolver, "org/missing", revision="v2")
    _refusal(resolver, "org/missing")

    assert [revision for _, revision, _ in hub.asked] == ["v2", ""]


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0-rc+2", "a" * 40, "feature/x_y"])
def test_branches_tags_and_commits_are_revisions(resolver: Resolver, hub: FakeHub, revision: str) -> None:
    resolver.resolve(Wanted("org/name", revision=revision))

    assert hub.asked == [("org/name", revision, False)]


@pytest.mark.parametrize(
    "revision", ["..", "../../../etc", "/etc", "a/../b", "a//b", "a/", ".git", "a b", "a\0", "a\n"]
)
def test_a_revision_that_could_lead_out_of_the_hub_cache_is_invalid(
    resolver: Resolver, hub: FakeHub, revision: str
) -> None:
    error = _refusal(resolver, "org/name", revision=revision)

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


def test_downloads_of_one_model_take_turns_and_nobody_else_waits_for_them(tmp_path: Path) -> None:
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
