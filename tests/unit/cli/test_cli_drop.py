"""`stop` and `invalidate`: nothing is dropped that was not meant."""

from __future__ import annotations

import json

import click
import pytest

from daemon.cli import exit_codes
from mlx_sidecar import Invalidated
from tests.unit.cli.cli_fakes import GIB, NOTHING, FakeClient, client_fixture, pretend_terminal, run_cli  # noqa: F401


def test_stop_drops_weights_only(client: FakeClient) -> None:
    result = run_cli(client, "stop", "org/name")

    assert (result.exit_code, result.stdout) == (0, "Stopped org/name; 3.0 GiB freed.\n")
    assert client.calls == [("invalidate_model", ("org/name",), {"weights": True, "prefixes": False})]


def test_stop_all_drops_all_weights(client: FakeClient) -> None:
    run_cli(client, "stop", "--all")

    assert client.calls == [("invalidate_all", (), {"weights": True, "prefixes": False})]


def test_stop_reports_models_that_are_still_in_use(client: FakeClient) -> None:
    client.dropped = Invalidated(("org/name",), 0, 0, GIB)

    assert run_cli(client, "stop", "org/name").stdout == (
        "Stopped org/name; 0 B freed.\n1.0 GiB more are in use and are freed when the last request ends.\n"
    )


def test_stopping_an_unloaded_model_is_no_error(client: FakeClient) -> None:
    client.dropped = NOTHING

    result = run_cli(client, "stop", "org/name")
    assert (result.exit_code, result.stdout) == (0, "org/name was not loaded.\n")
    assert run_cli(client, "stop", "--all").stdout == "No model was loaded.\n"
    assert json.loads(run_cli(client, "stop", "--all", "--json").stdout)["models"] == []


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["stop"], "Name a MODEL or give --all."),
        (["stop", "m", "--all"], "Name a MODEL or give --all."),
        (["invalidate"], "Name a MODEL or give --all."),
        (["invalidate", "--all", "--prefix", "x"], "--prefix needs a MODEL, not --all."),
        (["invalidate", "m", "--salt", "x"], "--salt belongs to --prefix."),
        (["invalidate", "m", "--prefix", "x", "--weights"], "--prefix drops cached prefixes only"),
        (["invalidate", "m", "--no-weights", "--no-prefixes"], "leave nothing to drop"),
        (["invalidate", "m"], "Without a terminal it cannot ask; give --yes or --dry-run."),
    ],
)
def test_contradictory_options_are_wrong_usage(client: FakeClient, args: list[str], sentence: str) -> None:
    result = run_cli(client, *args)

    assert result.exit_code == exit_codes.USAGE
    assert sentence in result.stderr
    assert client.calls == []


def test_invalidate_previews_and_asks_first(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch, "stdin")

    result = run_cli(client, "invalidate", "org/name", stdin="y\n")

    assert result.stderr.startswith(
        "Would drop the weights of org/name and 12 blocks of cached prefixes; 3.0 GiB freed.\nGo on? [y/N]: "
    )
    assert result.stdout == ("Dropped the weights of org/name and 12 blocks of cached prefixes; 3.0 GiB freed.\n")
    assert [options["dry_run"] for _, options in client.called("invalidate_model")] == [True, False]


def test_declined_invalidate_drops_nothing(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch, "stdin")

    result = run_cli(client, "invalidate", "--all", stdin="n\n")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith("Nothing was dropped.\n")
    assert [options["dry_run"] for _, options in client.called("invalidate_all")] == [True]


def test_ctrl_c_at_the_invalidate_prompt_exits_130(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch, "stdin")

    def interrupt(*args: object, **options: object) -> bool:
        raise click.Abort

    monkeypatch.setattr(click, "confirm", interrupt)

    assert run_cli(client, "invalidate", "--all").exit_code == exit_codes.INTERRUPTED
    assert len(client.calls) == 1


def test_yes_flag_skips_the_question_and_dry_run_drops(client: FakeClient) -> None:
    result = run_cli(client, "invalidate", "m", "--prefix", "You are", "--salt", "s", "--yes")
    assert result.exit_code == 0
    assert [call[1:] for call in client.calls] == [
        (("m", "You are"), {"salt": "s", "dry_run": False}),
    ]

    client.calls.clear()
    result = run_cli(client, "invalidate", "--all", "--no-weights", "--dry-run", "--json")
    assert json.loads(result.stdout)["dry_run"] is True
    assert client.calls == [("invalidate_all", (), {"weights": False, "prefixes": True, "dry_run": True})]


def test_empty_invalidate_still_reaches_the_daemon(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that died holds nothing, and its model's quarantine must be lifted all the same."""
    pretend_terminal(monkeypatch, "stdin")
    client.dropped = NOTHING

    result = run_cli(client, "invalidate", "m")

    assert (result.exit_code, result.stdout) == (
        0,
        "Nothing to drop; `mlx-sidecar ps` and `mlx-sidecar cache ls` tell what there is of m.\n",
    )
    assert [options["dry_run"] for _, options in client.called("invalidate_model")] == [True, False]
