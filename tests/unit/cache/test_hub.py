"""Hub models come from the local cache if they are complete there. Each error of the Hub has a reason."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, errors
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

from daemon.cache import hub
from daemon.cache.hub import planned_bytes, snapshot
from daemon.engine.background.background import as_sidecar_error
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _ignore(_done: int, _total: int) -> None:
    """Ignore the progress."""


@pytest.fixture(name="cache")
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty Hub cache, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture(name="repo")
def _repo(cache: Path) -> Path:
    """Return the snapshot of org/name in a cache with the folders of huggingface_hub."""
    folder = cache / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return write_model(folder / "snapshots" / COMMIT)


def _refusal(**options: Any) -> SidecarError:
    settings: dict[str, Any] = {"repo": "org/name", "revision": "", "allow_download": False, "report": _ignore}
    with pytest.raises(SidecarError) as caught:
        snapshot(**{**settings, **options})
    return caught.value


def test_cached_model_is_found_by_branch_or_commit(repo: Path) -> None:
    for revision in ("", "main", COMMIT):
        assert snapshot("org/name", revision, allow_download=False, report=_ignore) == repo


def test_cached_model_is_not_requested_from_the_hub(repo: Path) -> None:
    assert snapshot("org/name", "", allow_download=True, report=_ignore) == repo


@pytest.mark.usefixtures("cache")
def test_uncached_model_error_names_the_pull_command() -> None:
    error = _refusal()

    assert error.reason is Reason.MODEL_NOT_CACHED
    assert "mlx-sidecar pull org/name" in error.message


@pytest.mark.usefixtures("repo")
def test_a_revision_that_is_not_cached_is_refused() -> None:
    assert _refusal(revision="v2").reason is Reason.MODEL_NOT_CACHED


@pytest.mark.usefixtures("cache")
def test_offline_download_reports_model_not_cached() -> None:
    error = _refusal(allow_download=True)

    assert error.reason is Reason.MODEL_NOT_CACHED
    assert "HF_HUB_OFFLINE was set" in error.message


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["org/na--me", "org/name.git", "org/-name", "a/b/c"])
def test_invalid_hub_name_is_not_found(name: str) -> None:
    error = _refusal(repo=name)

    assert (error.reason, error.field) == (Reason.MODEL_NOT_FOUND, "model")


@pytest.mark.parametrize(
    ("index", "complete"),
    [
        (None, True),
        ('{"weight_map": {"a": "model.safetensors"}}', True),
        ('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}', False),
        ('{"weight_map": {"a": "model.safetensors", "b": "mtp/extra.safetensors", "c": "other.safetensors"}}', True),
        ("{", False),
        ("[]", False),
        ('{"weight_map": [1]}', False),
        ('{"weight_map": {"a": 1}}', False),
    ],
)
def test_interrupted_download_is_not_a_cached_model(repo: Path, index: str | None, complete: bool) -> None:
    if index is not None:
        (repo / "model.safetensors.index.json").write_text(index)

    if complete:
        assert snapshot("org/name", "", allow_download=False, report=_ignore) == repo
    else:
        assert _refusal().reason is Reason.MODEL_NOT_CACHED


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_incomplete_snapshot_is_not_a_cached_model(repo: Path, missing: str) -> None:
    (repo / missing).unlink()

    assert _refusal().reason is Reason.MODEL_NOT_CACHED


Fetch = Callable[..., str]


def _online(monkeypatch: pytest.MonkeyPatch, download: Fetch) -> list[dict[str, Any]]:
    """Replace the Hub: nothing is cached, and `download` stands for downloads. Return the options of each call."""
    calls: list[dict[str, Any]] = []

    def fetch(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not cached")
        return download(repo, **options)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    return calls


def _http(kind: type[Exception], message: str = "refused") -> Exception:
    """Return an HTTP error of the Hub."""
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    return kind(message, response=response)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "reason", "says"),
    [
        (_http(errors.GatedRepoError), Reason.MODEL_GATED, "hf auth login"),
        (_http(errors.RevisionNotFoundError), Reason.MODEL_NOT_FOUND, "no revision v2"),
        (_http(errors.RepositoryNotFoundError), Reason.MODEL_NOT_FOUND, "private"),
        (_http(errors.DisabledRepoError), Reason.MODEL_NOT_CACHED, "DisabledRepoError"),
        (_http(errors.HfHubHTTPError), Reason.MODEL_NOT_CACHED, "cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), Reason.MODEL_NOT_CACHED, "OfflineModeIsEnabled"),
        (errors.LocalEntryNotFoundError("no network"), Reason.MODEL_NOT_CACHED, "cannot be reached"),
        (errors.FileMetadataError("no etag"), Reason.MODEL_NOT_CACHED, "FileMetadataError"),
        (errors.HfHubHTTPError.__mro__[1]("connection reset"), Reason.MODEL_NOT_CACHED, "HTTPError"),
        (RuntimeError("CAS service error"), Reason.MODEL_NOT_CACHED, "(RuntimeError); ask again"),
        (OSError("Consistency check failed"), Reason.MODEL_NOT_CACHED, "(OSError); ask again"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_error_of_the_hub_has_its_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: Reason, says: str
) -> None:
    def download(repo: str, **_: Any) -> str:
        raise error

    _online(monkeypatch, download)

    refusal = _refusal(revision="v2", allow_download=True)

    assert refusal.reason is reason
    assert says in refusal.message
    assert refusal.__cause__ is error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError("IO Error: No space left on device (os error 28)")], ids=str
)
def test_full_disk_is_no_fault_of_the_hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The caller is told of the machine, and when to try again."""

    def download(repo: str, **_: Any) -> str:
        raise error

    _online(monkeypatch, download)
    with pytest.raises(type(error)) as caught:
        snapshot("org/name", "", allow_download=True, report=_ignore)
    assert as_sidecar_error(caught.value).reason is Reason.MACHINE_EXHAUSTED


def test_all_files_that_mlx_lm_reads_are_downloaded_but_its_code() -> None:
    """A file that it reads and that is not there can be a tokenizer."""
    assert {*hub.PATTERNS, "*.py"} == {*DEFAULT_ALLOW_PATTERNS}


def test_download_leaves_out_executable_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = _online(monkeypatch, lambda _repo, **_options: str(tmp_path))

    assert snapshot("org/name", "", allow_download=True, report=_ignore) == tmp_path

    assert [call.get("local_files_only", False) for call in calls] == [True, False]
    for call in calls:
        assert call["revision"] is None
        assert not any(pattern.endswith((".py", ".bin", ".pkl", "*")) for pattern in call["allow_patterns"])


def _bars(options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return the bars that huggingface_hub makes of a class: bytes received, bytes written, files."""
    make = options["tqdm_class"]
    return make(total=0, unit="B"), make(total=0, unit="B", name="hub"), make(total=3, unit="it")


def test_download_progress_follows_the_leading_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []

    def download(_repo: str, **options: Any) -> str:
        received, written, files = _bars(options)
        for bar in (received, written):
            bar.total = 100
        received.update(60)
        received.refresh()
        written.update(80)
        written.refresh()
        files.update(1)
        files.refresh()
        return str(tmp_path)

    _online(monkeypatch, download)
    snapshot("org/name", "", allow_download=True, report=lambda done, total: reports.append((done, total)))

    assert (60, 100) in reports
    assert reports[-1] == (80, 100)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)


def test_progress_bars_leave_no_thread_or_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reports: list[tuple[int, int]] = []
    threads = threading.active_count()

    def download(_repo: str, **options: Any) -> str:
        for bar in _bars(options):
            bar.update(1)
            bar.refresh()
            seen.append(bar)
        return str(tmp_path)

    seen: list[Any] = []
    _online(monkeypatch, download)
    snapshot("org/name", "", allow_download=True, report=lambda done, total: reports.append((done, total)))
    count = len(reports)
    for bar in seen:
        bar.close()

    assert len(reports) == count
    assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


def test_failing_progress_report_aborts_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_repo: str, **options: Any) -> str:
        received, _, _ = _bars(options)
        received.total = 10
        received.update(5)
        received.refresh()
        raise AssertionError("the download went on")

    def abandon(_done: int, _total: int) -> None:
        raise SidecarError(Reason.INTERNAL, "nobody waits")

    _online(monkeypatch, download)

    assert _refusal(allow_download=True, report=abandon).message == "nobody waits"


def _files(**sizes: int | None) -> list[SimpleNamespace]:
    return [SimpleNamespace(filename=f"model-{name}.safetensors", file_size=size) for name, size in sizes.items()]


def test_sizes_are_known_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def fetch(repo: str, **options: Any) -> list[SimpleNamespace]:
        calls.append({"repo": repo, **options})
        others = ("config.json", "consolidated.safetensors", "models/model.safetensors")
        return [*_files(one=10, two=20, three=None), *(SimpleNamespace(filename=name, file_size=5) for name in others)]

    monkeypatch.setattr(hub, "snapshot_download", fetch)

    assert planned_bytes("org/name", "v2") == 30
    patterns = {"allow_patterns": hub.PATTERNS, "ignore_patterns": ["*/*.safetensors"]}
    assert calls == [{"repo": "org/name", "revision": "v2", **patterns, "dry_run": True}]


def test_repo_without_weights_is_not_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: _files())

    with pytest.raises(SidecarError) as caught:
        planned_bytes("org/name", "")
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


@pytest.mark.usefixtures("cache")
def test_offline_download_size_is_unknown() -> None:
    with pytest.raises(SidecarError) as caught:
        planned_bytes("org/name", "")
    assert caught.value.reason is Reason.MODEL_NOT_CACHED


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(errors.GatedRepoError, Reason.MODEL_GATED), (errors.RepositoryNotFoundError, Reason.MODEL_NOT_FOUND)],
)
def test_files_hidden_by_a_dry_run_are_reported(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], reason: Reason
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise errors.DryRunError("cannot") from _http(kind)

    monkeypatch.setattr(hub, "snapshot_download", fetch)

    with pytest.raises(SidecarError) as caught:
        planned_bytes("org/name", "")
    assert caught.value.reason is reason
