"""Models are fetched from a Hub on the loopback address, and fetched again where a file in the cache is cut short."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import mlx_sidecar
from tests.support.daemons import SERVE, RunningDaemon
from tests.support.models import copy_of_embedded

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """
    The parts of the Hub's API that a download uses, with one model, org/name.

    Args:
        model: The directory with its files.

    Attributes:
        fetched: Names of the files that were sent, in order.
    """

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {file.name: file.read_bytes() for file in model.iterdir()}
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def tree(self) -> list[dict[str, object]]:
        """Return the list of its files, as the API has it; weights are LFS files."""
        return [_entry(name, content) for name, content in self.files.items()]


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
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name/tree/"):
            self._send(json.dumps(self.server.tree()).encode())
        elif path.startswith("/api/models/org/name"):
            self._send(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            if self.command == "GET":
                self.server.fetched.append(name)
            self._send(self.server.files[name])
        else:
            self.send_error(404)

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
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
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


def test_weights_that_are_cut_short_are_fetched_again(
    start_daemon: Callable[..., RunningDaemon], hub: Hub, folder: Path
) -> None:
    """A load says that they are missing and how to fetch them; a download fetches them alone."""
    weights = folder / "hub" / "models--org--name" / "snapshots" / COMMIT / "model.safetensors"
    with start_daemon(["env", "HF_HUB_OFFLINE=0", *SERVE]).client() as client:
        before = client.load("org/name", allow_download=True)
        whole = weights.read_bytes()
        assert sorted(hub.fetched) == sorted(set(hub.files) - {"README.md"})
        client.invalidate_model("org/name")
        hub.fetched.clear()
        weights.resolve().write_bytes(whole[:-1])

        assert [model.complete for model in client.list_models().models if model.place == "hub_cache"] == [False]
        with pytest.raises(mlx_sidecar.ModelNotCached, match="mlx-sidecar pull org/name"):
            client.load("org/name")
        after = client.load("org/name", allow_download=True)
        assert hub.fetched == ["model.safetensors"]
    assert weights.read_bytes() == whole
    assert (after.outcome, after.fingerprint) == ("loaded", before.fingerprint)
