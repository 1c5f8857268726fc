"""`ls`, `show` and `rm`: the models of this machine, what is known of each, and how one is deleted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlx_sidecar import DaemonNotRunning, ModelList, ProtocolError, UnreadPlace
from tests.unit.cli.cli_fakes import (  # noqa: F401
    LISTED,
    FakeClient,
    client_fixture,
    pretend_terminal,
    run_cli,
)

COMMIT = "c" * 40


@pytest.fixture(name="hub")
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty Hub cache that the program uses."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fetched(hub: Path, model: str, nbytes: int, name: str = "model.safetensors", revision: str = COMMIT) -> Path:
    """Put a model into the cache as huggingface_hub does: blobs, and a snapshot of links to them."""
    repo = hub / f"models--{model.replace('/', '--')}"
    snapshot = repo / "snapshots" / revision
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(revision)
    for file, content in (("config.json", b'{"model_type": "qwen3"}'), (name, b"\0" * nbytes)):
        blob = repo / "blobs" / f"{revision[:8]}-{file}"
        blob.write_bytes(content)
        (snapshot / file).symlink_to(blob)
    return snapshot


def listed(client: FakeClient, *models: object, **fields: object) -> None:
    """Let the daemon list these models."""
    rows = tuple(replace(LISTED, aliases=(), **model) for model in models)  # type: ignore[arg-type]
    given = {"unread": (), "fits_bytes": 2048, "truncated": False, "aliases": {}, **fields}
    client.listed = ModelList(rows, **given)  # type: ignore[arg-type]


def away(client: FakeClient) -> None:
    """Let no daemon run."""
    client.error = DaemonNotRunning("gone")


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of each model in a table."""
    lines = [line for line in text.splitlines()[1:] if "  " in line]
    return {line.split()[0]: re.split(r"  +", line) for line in lines}


def test_ls_shows_size_fit_and_abilities(client: FakeClient) -> None:
    listed(
        client,
        {"model": "org/small", "size_bytes": 1000},
        {"model": "org/large", "size_bytes": 3000, "fits": False},
        {"model": "org/loaded", "loaded": True},
        {"model": "org/half", "complete": False, "size_bytes": 9},
        {"model": "org/none", "complete": False, "size_bytes": 0},
        {"model": "org/odd", "problem": "it is odd"},
        aliases={"fast": "org/small"},
        unread=(UnreadPlace("/mnt/gone", "it did not answer within 5 s"),),
    )

    shown = run_cli(client, "list")

    cells = rows(shown.stdout)
    assert {name: row[3] for name, row in cells.items()} == {
        "org/small": "yes",
        "org/large": "no",
        "org/loaded": "loaded",
        "org/half": "incomplete",
        "org/none": "no weights",
        "org/odd": "unusable",
    }
    assert cells["org/small"][1:] == ["1000 B", "4.0 GiB", "yes", "4096", "chat tools", "-"]
    assert "fast stands for org/small." in shown.stdout
    assert "/mnt/gone could not be read: it did not answer within 5 s." in shown.stderr
    assert shown.stdout.splitlines()[-1] == "Weights may take 2.0 KiB; what is idle makes room."


def test_ls_shows_names_on_one_line_each(client: FakeClient) -> None:
    """A directory may have any name: control characters could command a terminal, and lines could pass for models."""
    listed(client, {"model": "/m/\x1b[2Ja\nb", "problem": "it is \x1b[7m"})

    lines = run_cli(client, "ls").stdout.splitlines()

    assert lines[1].startswith("/m/�[2Ja�b  ")
    assert not any("\x1b" in line for line in lines)


def test_ls_json_has_no_fit_of_an_incomplete_model(client: FakeClient) -> None:
    listed(client, {"complete": False}, {"last_used_unix_seconds": 1})

    half, whole = json.loads(run_cli(client, "ls", "--json").stdout)

    assert (half["fits"], whole["fits"], half["last_used"]) == (None, True, None)
    assert whole["last_used"] == "1970-01-01T00:00:01+00:00"
    assert whole["can"] == {"chat": True, "tools": True, "reasoning": False, "embeddings": False}


def test_ls_json_has_a_date_for_any_time_of_a_file(client: FakeClient) -> None:
    """Some disks keep times that no calendar has."""
    listed(client, {"last_used_unix_seconds": 1 << 60}, {"last_used_unix_seconds": -1})

    late, early = json.loads(run_cli(client, "ls", "--json").stdout)

    assert (late["last_used"], early["last_used"]) == ("9999-12-31T23:59:59+00:00", "1970-01-01T00:00:00+00:00")


@pytest.mark.parametrize("error", [DaemonNotRunning("gone"), ProtocolError("no such method", code="UNIMPLEMENTED")])
def test_ls_without_daemon_reads_the_disk(
    client: FakeClient, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The default branch counts, an interrupted download is incomplete, and the configured budget decides."""
    fetched(hub, "org/name", 5000, revision="a" * 40)
    fetched(hub, "org/name", 3 << 20, revision="b" * 40)
    half = fetched(hub, "org/half", 10, name="model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (half / "model.safetensors.index.json").write_text(json.dumps(index))
    client.error = error
    monkeypatch.setenv("MLX_SIDECAR_MODEL_CACHE_MB", "2")
    monkeypatch.setenv("MLX_SIDECAR_ALIASES", "fast=org/name")

    result = run_cli(client, "ls")

    assert result.exit_code == 0
    assert {name: row[3] for name, row in rows(result.stdout).items()} == {
        "embedded": "yes",
        "org/name": "no",
        "org/half": "incomplete",
    }
    assert "2.0 MiB (model_cache_mb)" in result.stdout
    models = {model["model"]: model for model in json.loads(run_cli(client, "ls", "--json").stdout)}
    assert (models["org/name"]["revision"], models["org/name"]["size_bytes"]) == ("b" * 40, 3 << 20)
    assert models["org/name"]["aliases"] == ["fast"]
    assert models["org/name"]["disk_bytes"] >= (3 << 20) + 5000
    assert models["embedded"]["can"]["chat"]


def test_ls_names_a_model_root_that_is_not_there(
    client: FakeClient, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelled directory would otherwise look like an empty one."""
    client.error = DaemonNotRunning("gone")
    monkeypatch.setenv("MLX_SIDECAR_MODEL_ROOTS", str(tmp_path / "none"))

    result = run_cli(client, "ls")

    assert result.exit_code == 0
    assert f"{tmp_path / 'none'} could not be read: model_roots names it" in result.stderr


def test_ls_of_an_empty_cache_says_how_to_fill_it(client: FakeClient, hub: Path) -> None:
    away(client)

    assert "No model is in the Hub cache. Fetch one with: mlx-sidecar pull ORG/NAME\n" in run_cli(client, "ls").stdout


def test_ls_passes_other_errors_on(client: FakeClient) -> None:
    client.error = ProtocolError("what is this", code="INTERNAL")

    assert run_cli(client, "ls").exit_code == 1


def test_show_loads_nothing_and_tells_all(client: FakeClient) -> None:
    shown = run_cli(client, "show", "fast")

    assert client.called("load") == [(("fast",), {"estimate_only": True})]
    assert re.search(r"^architecture +qwen3$", shown.stdout, re.MULTILINE)
    assert re.search(r"^aliases +fast$", shown.stdout, re.MULTILINE)
    assert re.search(r"^quantised +4 bits$", shown.stdout, re.MULTILINE)
    tree = json.loads(run_cli(client, "show", "fast", "--json").stdout)
    assert (tree["info"]["num_layers"], tree["listed"]["model"]) == (8, "org/name")


def removable(client: FakeClient, hub: Path) -> Path:
    """Put a model into the cache, and let the daemon list it."""
    snapshot = fetched(hub, "org/name", 5000)
    fetched(hub, "org/name", 700, revision="b" * 40)
    fetched(hub, "org/other", 1000)
    listed(client, {"path": str(snapshot)}, aliases={"fast": "org/name"})
    return hub / "models--org--name"


def test_rm_deletes_all_revisions_of_one_model(client: FakeClient, hub: Path) -> None:
    folder = removable(client, hub)

    result = json.loads(run_cli(client, "rm", "fast", "--yes", "--json").stdout)

    assert (result["model"], result["deleted"]) == ("org/name", True)
    assert result["bytes_freed"] >= 5700
    assert not folder.exists()
    assert (hub / "models--org--other").exists()


@pytest.mark.parametrize("damage", ["a link to nothing", "a branch of nothing", "a file among the revisions"])
def test_rm_deletes_a_damaged_model(client: FakeClient, hub: Path, damage: str) -> None:
    """huggingface_hub's scan leaves it out. It must not be called deleted while it is there."""
    folder = removable(client, hub)
    listed(client, {"path": str(folder / "snapshots" / COMMIT), "disk_bytes": 5700})
    if damage == "a link to nothing":
        (folder / "snapshots" / COMMIT / "lost.json").symlink_to(folder / "blobs" / "lost")
    elif damage == "a branch of nothing":
        (folder / "refs" / "other").write_text("d" * 40)
    else:
        (folder / "snapshots" / "notes.txt").write_text("mine")

    result = json.loads(run_cli(client, "rm", "org/name", "--yes", "--json").stdout)

    assert result == {"model": "org/name", "deleted": True, "bytes_freed": 5700}
    assert not folder.exists()
    assert (hub / "models--org--other").exists()


def test_rm_asks_and_keeps_without_a_yes(client: FakeClient, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = removable(client, hub)
    assert run_cli(client, "rm", "org/name").exit_code == 2
    pretend_terminal(monkeypatch, "stdin")

    kept = run_cli(client, "rm", "org/name", stdin="n\n")

    assert "Delete org/name (" in kept.stderr
    assert kept.stdout == "Nothing was deleted.\n"
    assert folder.exists()
    assert "Deleted org/name; " in run_cli(client, "rm", "org/name", stdin="y\n").stdout
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("org/name", {"loaded": True}, "org/name is in memory; first: mlx-sidecar stop org/name"),
        ("embedded", {"model": "embedded", "place": "embedded"}, "a part of mlx-sidecar"),
        ("/m", {"model": "/m", "place": "root", "path": "/m"}, "/m is a directory outside of the Hub cache"),
        ("/elsewhere", {}, "/elsewhere is a directory outside of the Hub cache"),
        ("org/none", {}, "org/none is not in the Hub cache; mlx-sidecar ls lists what is."),
    ],
)
def test_rm_refuses_what_is_not_its_own(client: FakeClient, name: str, fields: dict[str, object], words: str) -> None:
    listed(client, fields)

    result = run_cli(client, "rm", name, "--yes")

    assert result.exit_code == 1
    assert words in result.stderr


def test_rm_works_without_a_daemon(client: FakeClient, hub: Path) -> None:
    folder = removable(client, hub)
    away(client)

    assert run_cli(client, "rm", "org/name", "--yes").exit_code == 0
    assert not folder.exists()
