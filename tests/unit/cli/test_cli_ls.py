"""`ls`: what the Hub cache holds, and whether it fits."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlx_sidecar import DaemonNotRunning
from tests.unit.cli.cli_fakes import GIB, INFO, MODEL_STATS, STATS, FakeClient, client_fixture, run_cli  # noqa: F401

COMMIT = "c" * 40


@pytest.fixture(name="hub")
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty Hub cache that the program uses."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fetched(hub: Path, model: str, nbytes: int, name: str = "model.safetensors", revision: str = COMMIT) -> None:
    """Put a model into the cache as huggingface_hub does: blobs, and a snapshot of links to them."""
    repo = hub / f"models--{model.replace('/', '--')}"
    snapshot = repo / "snapshots" / revision
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(revision)
    for file, content in (("config.json", b"{}"), (name, b"\0" * nbytes)):
        blob = repo / "blobs" / f"{revision[:8]}-{file}"
        blob.write_bytes(content)
        (snapshot / file).symlink_to(blob)


def budget(client: FakeClient, nbytes: int, limit: int = 64 * GIB) -> None:
    """Let the daemon allow so many bytes of weights."""
    client.state = replace(
        STATS,
        models=(replace(MODEL_STATS, info=replace(INFO, model="org/loaded")),),
        model_cache=replace(STATS.model_cache, budget_bytes=nbytes),
        memory=replace(STATS.memory, limit_bytes=limit),
    )


def test_ls_shows_size_and_fit_of_each_model(client: FakeClient, hub: Path) -> None:
    fetched(hub, "org/small", 1000)
    fetched(hub, "org/large", 3000)
    fetched(hub, "org/loaded", 10)
    fetched(hub, "org/half", 10, name="model-00001-of-00002.safetensors.index.json")
    budget(client, 2000)

    lines = run_cli(client, "ls").stdout.splitlines()

    cells = {line.split("  ")[0]: [cell.strip() for cell in line.split("  ") if cell] for line in lines[1:-1]}
    assert lines[0].split("  ")[0] == "MODEL"
    assert {name: row[3] for name, row in cells.items()} == {
        "org/half": "no weights",
        "org/large": "no",
        "org/loaded": "loaded",
        "org/small": "yes",
    }
    assert cells["org/small"][1] == "1000 B"
    assert lines[-1] == "Weights may take 2.0 KiB; what is idle makes room."


def test_ls_marks_an_interrupted_download_incomplete(client: FakeClient, hub: Path) -> None:
    fetched(hub, "org/half", 10, name="model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    snapshot = hub / "models--org--half" / "snapshots" / COMMIT
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))

    assert "incomplete" in run_cli(client, "ls").stdout
    assert json.loads(run_cli(client, "ls", "--json").stdout)[0]["fits"] is None


def test_ls_shows_the_default_branch_and_total_size(client: FakeClient, hub: Path) -> None:
    fetched(hub, "org/name", 5000, revision="a" * 40)
    fetched(hub, "org/name", 700, revision="b" * 40)
    budget(client, 2000)

    (model,) = json.loads(run_cli(client, "ls", "--json").stdout)

    assert (model["model"], model["revision"], model["size_bytes"]) == ("org/name", "b" * 40, 700)
    assert model["disk_bytes"] >= 5700
    assert (model["fits"], model["loaded"], model["complete"]) == (True, False, True)


def test_ls_without_daemon_uses_the_configured_budget(
    client: FakeClient, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched(hub, "org/name", 3 << 20)
    client.error = DaemonNotRunning("gone")
    monkeypatch.setenv("MLX_SIDECAR_MODEL_CACHE_MB", "2")

    result = run_cli(client, "ls")

    assert result.exit_code == 0
    assert re.search(r"^org/name .*MiB  no  ", result.stdout, re.MULTILINE)
    assert "2.0 MiB (model_cache_mb)" in result.stdout


def test_ls_treats_a_zero_budget_as_no_limit(client: FakeClient, hub: Path) -> None:
    fetched(hub, "org/name", 3000)
    budget(client, 0, limit=4000)

    assert json.loads(run_cli(client, "ls", "--json").stdout)[0]["fits"] is True


def test_ls_of_an_empty_cache_says_how_to_fill_it(client: FakeClient, hub: Path) -> None:
    missing = run_cli(client, "ls")
    hub.mkdir()

    assert missing.stdout == run_cli(client, "ls").stdout
    assert missing.stdout == f"No model is in {hub}. Fetch one with: mlx-sidecar pull ORG/NAME\n"
    assert run_cli(client, "ls", "--json").stdout == "[]\n"
