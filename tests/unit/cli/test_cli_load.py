"""`load`: progress on stderr, the model on stdout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.cli import exit_codes
from mlx_sidecar import LoadProgress
from tests.unit.cli.cli_fakes import GIB, INFO, MIB, FakeClient, client_fixture, pretend_terminal, run_cli  # noqa: F401


def test_load_sends_every_option(client: FakeClient, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    flags = "--pin --ttl 10m --revision v1 --adapter lora --no-download --skip-warmup --estimate-only"
    flags += " --context-length 32768"

    assert run_cli(client, "load", "org/name", *flags.split()).exit_code == 0

    assert client.called("get_or_load") == [
        (
            ("org/name",),
            {
                "pin": True,
                "ttl": 600.0,
                "revision": "v1",
                "adapter": str(tmp_path / "lora"),
                "allow_download": False,
                "skip_warmup": True,
                "estimate_only": True,
                "context_length": 32768,
            },
        )
    ]


def test_load_estimate_downloads_nothing(client: FakeClient) -> None:
    client.info = replace(INFO, outcome="estimated", fingerprint="")

    result = run_cli(client, "load", "org/name", "--estimate-only")

    assert result.stdout == "org/name would take 3.0 GiB; it is not on this machine yet.\n"
    assert client.called("get_or_load")[0][1]["allow_download"] is False


def test_load_tells_where_memory_bounds_requests(client: FakeClient) -> None:
    client.info = replace(INFO, max_request_tokens=3000)
    assert run_cli(client, "load", "m").stdout.endswith("\nMemory has room for requests of 3000 of its 4096 tokens.\n")
    client.info = replace(INFO, max_request_tokens=4096)
    assert "Memory" not in run_cli(client, "load", "m").stdout


def test_pull_downloads_what_is_new_and_loads_nothing(client: FakeClient) -> None:
    client.info = replace(
        INFO,
        revision="0123456789abcdef",
        warnings=("org/name was not updated; the Hub cannot be reached (ConnectError)",),
    )
    result = run_cli(client, "pull", "org/name", "--revision", "v1")

    assert (result.exit_code, result.stdout) == (0, "org/name is on this machine (3.0 GiB, commit 0123456).\n")
    assert client.called("get_or_load") == [
        (("org/name",), {"revision": "v1", "allow_download": True, "estimate_only": True, "update": True})
    ]
    assert result.stderr == "Warning: org/name was not updated; the Hub cannot be reached (ConnectError)\n"


def test_pull_json_is_the_model(client: FakeClient) -> None:
    assert json.loads(run_cli(client, "pull", "org/name", "--json").stdout)["model"] == "org/name"


@pytest.mark.parametrize(("flags", "pin"), [([], None), (["--pin"], True), (["--unpin"], False)])
def test_load_leaves_the_pin_unset_by_default(client: FakeClient, flags: list[str], pin: bool | None) -> None:
    run_cli(client, "load", "m", *flags)

    assert client.called("get_or_load")[0][1]["pin"] is pin


def test_invalid_ttl_option_is_refused(client: FakeClient) -> None:
    result = run_cli(client, "load", "m", "--ttl", "soon")

    assert result.exit_code == exit_codes.USAGE
    assert "'soon' must be a number of seconds from 0 to 1e9" in result.stderr


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        ("loaded", "org/name is ready: 3.0 GiB, loaded in 2.5 s.\n"),
        ("hit", "org/name is ready, it was loaded already (3.0 GiB).\n"),
        ("uncached", "org/name was loaded in 2.5 s but is not kept, because model_cache_mb is 0.\n"),
        ("estimated", "org/name would take 3.0 GiB, and 2.0 KiB for each token of a prompt.\n"),
    ],
)
def test_load_reports_hit_or_miss(client: FakeClient, outcome: str, text: str) -> None:
    client.info = replace(INFO, outcome=outcome)

    assert run_cli(client, "load", "org/name").stdout == text


@pytest.mark.parametrize(
    ("flag", "outcome", "text"),
    [
        ("--pin", "loaded", "org/name is ready: 3.0 GiB, loaded in 2.5 s, pinned until it is stopped.\n"),
        ("--pin", "hit", "org/name is ready, it was loaded already (3.0 GiB), pinned until it is stopped.\n"),
        ("--unpin", "hit", "org/name is ready, it was loaded already (3.0 GiB), no longer pinned.\n"),
        ("--pin", "uncached", "org/name was loaded in 2.5 s but is not kept, because model_cache_mb is 0.\n"),
        ("--pin", "estimated", "org/name would take 3.0 GiB, and 2.0 KiB for each token of a prompt.\n"),
    ],
)
def test_load_reports_the_pin(client: FakeClient, flag: str, outcome: str, text: str) -> None:
    """An estimate or an uncached load pins nothing and does not say so."""
    client.info = replace(INFO, outcome=outcome)

    assert run_cli(client, "load", "org/name", flag).stdout == text


def test_load_names_the_models_it_evicted(client: FakeClient) -> None:
    client.info = replace(INFO, evicted=("a", "b"))

    assert run_cli(client, "load", "org/name").stdout.endswith("\nDropped to make room: a, b.\n")


def test_progress_in_a_file_is_one_line_per_stage(client: FakeClient) -> None:
    client.progress = [
        LoadProgress("queued", 0, 0, ("old",)),
        *(LoadProgress("loading", done * MIB, 100 * MIB, ()) for done in (0, 1, 9, 10, 11, 55, 100)),
        LoadProgress("warming_up", 0, 0, ()),
    ]

    result = run_cli(client, "load", "m", "--json")

    assert result.stderr.splitlines() == [
        "queued, making room by dropping old",
        "loading 0 B of 100.0 MiB",
        "loading 10.0 MiB of 100.0 MiB",
        "loading 55.0 MiB of 100.0 MiB",
        "loading 100.0 MiB of 100.0 MiB",
        "warming up",
    ]
    assert json.loads(result.stdout)["fingerprint"] == "f" * 64


def test_progress_on_a_terminal_is_a_bar_on_stderr(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch, "stderr")
    client.progress = [
        LoadProgress("downloading", 1, 0, ()),
        LoadProgress("loading", GIB, 2 * GIB, ("[old]",)),
        LoadProgress("warming_up", 0, 0, ()),
    ]

    result = run_cli(client, "load", "org/name")

    assert (result.exit_code, result.stdout) == (0, "org/name is ready: 3.0 GiB, loaded in 2.5 s.\n")


@pytest.mark.parametrize("args", [["load"], ["run", "--raw"], ["stop"], ["invalidate", "--yes"]])
def test_missing_path_is_absolute_and_hub_id_is_kept(client: FakeClient, tmp_path: Path, args: list[str]) -> None:
    """A refusal then names the absolute path, and `stop` finds a model whose directory was deleted."""
    for name in ("./gone", "~/gone", "a/b/gone", "gone/", "org/name", "embedded", "/there"):
        run_cli(client, *args, name, stdin="Hi")

    models = [call[1][0] for call in client.calls]
    absolute = [str(tmp_path / name) for name in ("gone", "gone", "a/b/gone", "gone")]
    assert list(dict.fromkeys(models)) == list(dict.fromkeys([*absolute, "org/name", "embedded", "/there"]))


@pytest.mark.parametrize("args", [["load"], ["run", "--raw"], ["stop"], ["invalidate", "--yes"]])
def test_existing_relative_directory_is_made_absolute(client: FakeClient, tmp_path: Path, args: list[str]) -> None:
    for name in ("model", "embedded"):
        (tmp_path / name).mkdir()
    for name in ("./model", "embedded", "org/name"):
        run_cli(client, *args, name, stdin="Hi")

    models = [call[1][0] for call in client.calls]
    assert list(dict.fromkeys(models)) == [str(tmp_path / "model"), "embedded", "org/name"]


@pytest.mark.parametrize("args", [["load"], ["run", "--raw"], ["stop"], ["load", "m", "--adapter"]])
def test_path_of_unknown_user_is_refused(client: FakeClient, args: list[str]) -> None:
    """bash leaves such a word as it is. Its refusal is not that of a user without a home directory."""
    result = run_cli(client, *args, "~no-such-user/model", stdin="Hi")

    assert (result.exit_code, client.calls) == (exit_codes.USAGE, [])
    assert "there is no user 'no-such-user'" in result.stderr


def test_overlong_model_name_is_passed_on(client: FakeClient) -> None:
    """The daemon refuses it. A look whether it is a directory is no traceback."""
    name = 300 * "a"

    assert run_cli(client, "load", name).exit_code == 0
    assert client.calls[-1][1] == (name,)


def test_path_in_removed_directory_is_refused(
    client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    result = run_cli(client, "load", "./model")

    assert (result.exit_code, client.calls) == (exit_codes.USAGE, [])
    assert "the working directory was removed; give an absolute path" in result.stderr
