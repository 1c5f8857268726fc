"""
Finds models of the Hugging Face Hub in its local cache, and downloads them if the call allows it.

All access to the Hub and its cache is here, through huggingface_hub. Its errors become errors of ours.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import DryRunFileInfo, HfApi, constants, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: httpx's, or its successor's
    DryRunError,
    FileMetadataError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from tqdm import tqdm

from daemon.cache.callbacks import Report
from daemon.cache.digests import Stamp
from daemon.cache.model_files import check, read
from daemon.cache.unchanged import Findings, State
from daemon.cache.weight_files import is_weight_file, weight_files
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.machine_faults import machine_fault
from daemon.shared.small_file import replace_in_place

PATTERNS = [
    *("*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "tiktoken.model"),
    *("*.txt", "*.jsonl", "*.jinja"),
]
"""Files that mlx-lm reads of a model. Python files are left out: they are never run."""
_IGNORED = ["*/*.safetensors"]
"""Files that the patterns match as well: their asterisk stands for slashes too."""
_LISTS = "trees"
"""Directory beside the snapshots, in which huggingface_hub keeps a list of the files of each commit."""
_NUMBERED = re.compile(r"(.*)-\d+-of-(\d+)\.safetensors")
_NOT_CACHED = "is not in the local Hub cache"
_NOT_UPDATED = "was not updated"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_COMPLETE = Findings[tuple[Path, State], bool]()
"""Whether snapshots are complete: each call for a Hub id asks."""


def snapshot(repo: str, revision: str, *, allow_download: bool, report: Report) -> Path:
    """
    Return the directory of a model, from the local cache if it is complete there.

    Args:
        repo: The Hub id.
        revision: A branch, tag or commit; empty for the default branch.
        allow_download: Whether missing files may be downloaded.
        report: Gets the bytes of a download; may raise to abandon it.

    Raises:
        SidecarError: MODEL_NOT_CACHED, MODEL_NOT_FOUND or MODEL_GATED.
    """
    cached = _cached(repo, revision)
    if cached is not None:
        return cached
    if not allow_download:
        raise _refusal(repo, _NOT_CACHED, f"fetch it with: mlx-sidecar pull {repo}")
    with _refusing(repo, revision):
        return _fetch_whole(repo, revision, report)


def update(
    repo: str, revision: str, *, afford: Callable[[int], None], accept: Callable[[Path], None], report: Report
) -> Path:
    """
    Fetch what a branch of a model has got since, and return the directory of its newest commit. Asks the Hub.

    The branch stands for the commit that is in the local cache until all of the new one is there and accepted. An
    update that is interrupted, or that cannot be used, takes no model away.

    Args:
        repo: The Hub id.
        revision: A branch, tag or commit; empty for the default branch.
        afford: Raises if a model of so many bytes can never be loaded. Called if there is something to fetch.
        accept: Raises if the model in a directory cannot be used.
        report: Gets the bytes of a download; may raise to abandon it.

    Raises:
        SidecarError: MODEL_NOT_CACHED if the Hub cannot be asked, or does not give all of it; MODEL_NOT_FOUND,
            MODEL_GATED or MODEL_UNSUPPORTED; what `afford` and `accept` raise.
    """
    with _refusing(repo, revision, _NOT_UPDATED):
        commit = revision if _COMMIT.fullmatch(revision) else _newest(repo, revision)
        path = _cached(repo, commit)
        if path is None:
            afford(_weight_bytes(repo, commit))
            path = _fetch_whole(repo, commit, report)
            if not is_complete(path):
                raise _refusal(repo, _NOT_UPDATED, "the Hub did not give all of it")
        accept(path)
        if commit != revision:
            reference = _folder(repo) / "refs" / (revision or constants.DEFAULT_REVISION)
            reference.parent.mkdir(parents=True, exist_ok=True)
            replace_in_place(reference, commit.encode(), 0o644)
        return path


def _newest(repo: str, revision: str) -> str:
    """Return the commit that a branch or tag stands for at the Hub."""
    try:
        commit = HfApi().model_info(repo, revision=revision or None, timeout=constants.HF_HUB_ETAG_TIMEOUT).sha
    except HFValidationError:
        raise
    except (ValueError, KeyError, TypeError) as error:  # of a page that is not the Hub's, such as a network's login
        why = f"what answers for the Hub is not the Hub ({type(error).__name__})"
        raise _refusal(repo, _NOT_UPDATED, why) from error
    if commit is None or not _COMMIT.fullmatch(commit):
        raise _refusal(repo, _NOT_UPDATED, "what answers for the Hub is not the Hub")
    return commit


def _cached(repo: str, revision: str) -> Path | None:
    with _refusing(repo, revision):
        try:
            path = _fetch(repo, revision, local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        return path if is_complete(path) else None


def is_complete(path: Path) -> bool:
    """
    Return whether a snapshot has its configuration and all its weights.

    After an interrupted download, huggingface_hub returns an incomplete snapshot, unless it has a list of its files. It
    takes any file that is there for whole: a full disk or a loss of power can leave one that is cut short.
    An index may list files that mlx-lm does not load: they are never downloaded.
    """
    return _COMPLETE.get((path, list_state(path)), [path], lambda: _is_complete(path))


def list_state(path: Path) -> State:
    """Return the state of huggingface_hub's list of the files of a snapshot, by which it may be complete."""
    try:
        return (("list", Stamp.of(_list(path))),)
    except OSError:
        return ()


def _is_complete(path: Path) -> bool:
    names = {file.name for file in weight_files(path) if file.is_file()}
    if not (path / "config.json").is_file() or not names:
        return False
    # An index may be left over from other files, and it may come after them: the Hub's own list is right.
    listed = _listed(path)
    if listed is not None:
        return listed.keys() <= names and not _other_sizes(path, listed)
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return _has_all_numbers(names)
    try:
        shards = set(json.loads(read(index))["weight_map"].values())
        return {shard for shard in shards if is_weight_file(shard)} <= names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _listed(path: Path) -> dict[str, int] | None:
    """Return the weight files and their sizes of huggingface_hub's list of a snapshot's files; None without a list."""
    try:
        files = json.loads(read(_list(path)))["files"]
        return {name: file["size"] for name, file in files.items() if is_weight_file(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SidecarError):
        return None


def _other_sizes(path: Path, listed: dict[str, int]) -> list[str]:
    """Return the files of a snapshot that are there and have another size than the one that is listed."""
    sizes = {file.name: file.stat().st_size for file in weight_files(path) if file.is_file()}
    return [name for name, size in listed.items() if sizes.get(name, size) != size]


def _list(path: Path) -> Path:
    return path.parent.parent / _LISTS / f"{path.name}.json"


def _has_all_numbers(names: Iterable[str]) -> bool:
    """Return whether as many files are there as their names say: `model-00001-of-00004.safetensors` is one of four."""
    series = Counter(match.groups() for match in map(_NUMBERED.fullmatch, names) if match)
    return all(there >= int(number) for (_, number), there in series.items())


def planned_bytes(repo: str, revision: str) -> int:
    """
    Return the bytes of a model's weights, whether they are in the local cache or not. Asks the Hub.

    Raises:
        SidecarError: MODEL_NOT_CACHED, MODEL_NOT_FOUND, MODEL_GATED or MODEL_UNSUPPORTED.
    """
    with _refusing(repo, revision):
        return _weight_bytes(repo, revision)


def _weight_bytes(repo: str, revision: str) -> int:
    files = _list_files(repo, revision)
    weights = [file.file_size or 0 for file in files if is_weight_file(file.filename)]
    if not weights:
        raise SidecarError(
            Reason.MODEL_UNSUPPORTED, f"{repo} has no model*.safetensors weights; convert it with mlx_lm.convert"
        )
    return sum(weights)


def _list_files(repo: str, revision: str) -> list[DryRunFileInfo]:
    try:
        return snapshot_download(
            repo, revision=revision or None, allow_patterns=PATTERNS, ignore_patterns=_IGNORED, dry_run=True
        )
    except DryRunError as error:  # its cause is the error that a download would have raised
        raise error.__cause__ or OfflineModeIsEnabled("offline") from error


def _fetch_whole(repo: str, revision: str, report: Report) -> Path:
    """Fetch what is missing of a snapshot, and again what has another size than it should have."""
    bar = _reporting_bar(report)
    path = _fetch(repo, revision, tqdm_class=bar)
    damaged = _other_sizes(path, _listed(path) or {})
    if damaged:  # huggingface_hub has left them as they are
        again = [escape(name) for name in damaged]
        _fetch(repo, revision, tqdm_class=bar, force_download=True, allow_patterns=again)
    return path


@contextmanager
def _refusing(repo: str, revision: str, said: str = _NOT_CACHED) -> Iterator[None]:
    """Turn errors of huggingface_hub in a block into SidecarErrors; one of the Hub itself is `said` of the model."""
    try:
        yield
    except GatedRepoError as error:
        raise SidecarError(
            Reason.MODEL_GATED,
            f"{repo} is gated: accept its terms on the Hub, then log in with `hf auth login` and restart the daemon",
        ) from error
    except RevisionNotFoundError as error:
        text = f"{repo} has no revision {revision}; name a branch, a tag or a commit of it"
        raise SidecarError(Reason.MODEL_NOT_FOUND, text, field="revision") from error
    except RepositoryNotFoundError as error:
        text = f"the Hub has no model {repo}, or it is private: log in with `hf auth login` and restart the daemon"
        raise SidecarError(Reason.MODEL_NOT_FOUND, text, field="model") from error
    except HFValidationError as error:
        text = f"{repo} is no Hub id; give one as org/name"
        raise SidecarError(Reason.MODEL_NOT_FOUND, text, field="model") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, FileMetadataError, HTTPError) as error:
        why = f"the Hub cannot be reached ({type(error).__name__})"
        if constants.HF_HUB_OFFLINE:
            why = "the Hub is not asked, because HF_HUB_OFFLINE was set when the daemon started"
        raise _refusal(repo, said, why) from error
    except (RuntimeError, OSError) as error:  # of hf_xet, or of a file that came short: it has a text alone
        if machine_fault(error, repo) is not None or getattr(error, "errno", None) is not None:
            raise
        why = f"the Hub did not give all of it ({type(error).__name__}); ask again: files that are here are kept"
        raise _refusal(repo, said, why) from error


def _refusal(repo: str, said: str, why: str) -> SidecarError:
    return SidecarError(Reason.MODEL_NOT_CACHED, f"{repo} {said}; {why}")


def _fetch(repo: str, revision: str, **options: Any) -> Path:
    _refuse_irregular(repo, revision)
    chosen = {"allow_patterns": PATTERNS, "ignore_patterns": _IGNORED, **options}
    return Path(snapshot_download(repo, revision=revision or None, **chosen))


def _refuse_irregular(repo: str, revision: str) -> None:
    """Refuse FIFOs among the references and file lists of the cache: huggingface_hub opens them, and would wait."""
    folder = _folder(repo)
    for file in (folder / "refs" / (revision or constants.DEFAULT_REVISION), *folder.glob(f"{_LISTS}/*.json")):
        with suppress(FileNotFoundError, NotADirectoryError):
            check(file)


def _folder(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _reporting_bar(report: Report) -> type[tqdm[Any]]:
    """
    Return a progress bar class that reports instead of drawing.

    huggingface_hub makes three bars: bytes received, bytes written, files. The report is that of the byte bar that is
    ahead. The class derives from tqdm's, because huggingface_hub's own turns itself off without a terminal.
    """
    bars: list[tqdm[Any]] = []

    class ReportingBar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # or tqdm would start a thread that outlives the download

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False, "mininterval": 0.2})
            if self.unit == "B":
                bars.append(self)

        def display(self, *_: Any, **__: Any) -> bool:
            if bars:
                report(int(max(bar.n for bar in bars)), int(max(bar.total or 0 for bar in bars)))
            return True

        def close(self) -> None:
            self.disable = True  # or tqdm would draw once more from its destructor, long after the download

    return ReportingBar
