"""Models are fetched from a Hub on the loopback address, updated, and fetched again where a file is cut short."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import mlx_sidecar
from mlx_sidecar import Client, Message
from tests.support.daemons import SERVE, RunningDaemon
from tests.support.models import copy_of_embedded

OLD, NEW = "a" * 40, "b" * 40


class Hub(ThreadingHTTPServer):
    """
    The parts of the Hub's API that a download uses, with one model, org/name.

    Args:
        model: The directory with its files.

    Attributes:
        commits: The files of each commit; the last is that of the default branch.
        fetched: Names of the files that were sent, in order.
        withheld: Names of files that are listed, and not given.
    """

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits = {OLD: {file.name: file.read_bytes() for file in model.iterdir()}}
        self.fetched: list[str] = []
        self.withheld: set[str] = set()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


def _entry(name: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _etag(content)[:40]}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": _etag(content), "size": len(content), "pointerSize": 134}
    return entry


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Write no lines about requests."""

    def _answer(self) -> None:
        match self.path.partition("?")[0].split("/")[1:]:
            case ["api", "models", "org", "name", "tree", commit]:
                files = self.server.commits[commit]
                self._send(json.dumps([_entry(*file) for file in files.items()]).encode(), commit)
            case ["api", "models", "org", "name", *_]:
                commit = list(self.server.commits)[-1]
                self._send(json.dumps({"id": "org/name", "sha": commit, "siblings": []}).encode(), commit)
            case ["org", "name", "resolve", commit, name] if self._gives(name):
                if self.command == "GET":
                    self.server.fetched.append(name)
                self._send(self.server.commits[commit][name], commit)
            case _:
                self.send_error(403)

    def _gives(self, name: str) -> bool:
        return self.command == "HEAD" or name not in self.server.withheld

    def _send(self, content: bytes, commit: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture(name="hub")
def _hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Return a Hub with one model, which daemons that are started from now on ask."""
    hub = Hub(copy_of_embedded(folder))
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture(name="client")
def _client(start_daemon: Callable[..., RunningDaemon], hub: Hub) -> Iterator[Client]:
    """Return a client of a daemon that has loaded the Hub's model once."""
    with start_daemon(["env", "HF_HUB_OFFLINE=0", *SERVE]).client() as client:
        client.load("org/name", allow_download=True)
        assert sorted(hub.fetched) == sorted(set(hub.commits[OLD]) - {"README.md"})
        hub.fetched.clear()
        yield client


def test_weights_that_are_cut_short_are_fetched_again(client: Client, hub: Hub, folder: Path) -> None:
    """A load says that they are missing and how to fetch them; a download fetches them alone."""
    weights = folder / "hub" / "models--org--name" / "snapshots" / OLD / "model.safetensors"
    whole = weights.read_bytes()
    fingerprint = client.load("org/name").fingerprint
    client.invalidate_model("org/name")
    weights.resolve().write_bytes(whole[:-1])

    assert [model.complete for model in client.list_models().models if model.place == "hub_cache"] == [False]
    with pytest.raises(mlx_sidecar.ModelNotCached, match="mlx-sidecar pull org/name"):
        client.load("org/name")
    again = client.load("org/name", allow_download=True)
    assert (again.outcome, again.fingerprint) == ("loaded", fingerprint)
    assert (hub.fetched, weights.read_bytes() == whole) == (["model.safetensors"], True)


def test_update_fetches_what_the_branch_has_got_since(client: Client, hub: Hub, folder: Path) -> None:
    """Without it the Hub is not asked. An update that is interrupted leaves the branch where it was."""
    chat = [Message("user", "Hello.")]
    before = client.tokenize("org/name", chat).count
    template = hub.commits[OLD]["chat_template.jinja"]
    hub.commits[NEW] = {**hub.commits[OLD], "chat_template.jinja": b"Some words before it. " + template}

    assert client.load("org/name", allow_download=True).revision == OLD
    hub.withheld = {"chat_template.jinja"}
    kept = client.load("org/name", allow_download=True, update=True)
    assert (kept.revision, client.load("org/name").revision) == (OLD, OLD)
    assert "org/name was not updated; the Hub cannot be reached" in " ".join(kept.warnings)
    fetched = folder / "hub" / "models--org--name" / "snapshots" / NEW / "config.json"
    assert fetched.is_file(), "it was interrupted in the middle"

    hub.withheld.clear()
    new = client.load("org/name", allow_download=True, update=True)
    assert (new.revision, new.warnings, hub.fetched) == (NEW, (), ["chat_template.jinja"])
    assert client.load("org/name").revision == NEW
    assert client.tokenize("org/name", chat).count > before


def test_update_without_the_hub_keeps_what_is_here(client: Client, hub: Hub) -> None:
    """It warns, and is no error: the model can be used."""
    hub.shutdown()
    hub.server_close()
    info = client.load("org/name", allow_download=True, update=True)
    assert (info.revision, info.outcome) == (OLD, "hit")
    assert "org/name was not updated; the Hub cannot be reached" in " ".join(info.warnings)
    with pytest.raises(mlx_sidecar.ModelNotCached, match="org/other is not in the local Hub cache; the Hub cannot be"):
        client.load("org/other", allow_download=True, update=True)
