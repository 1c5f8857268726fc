"""The screen of `top`: what it shows at which width, and how it goes from one look to the next."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from daemon.cli import exits
from daemon.cli.screen import Screen, View, sparkline
from mlx_sidecar import Stats
from tests.unit.cli_fakes import (
    STATS,
    FakeClient,
    client_fixture,  # noqa: F401 - pytest finds it by its name
    run_cli,
)
from tests.unit.stats_sample import SAMPLE


def drawn(view: View, width: int = 100, encoding: str = "utf-8") -> str:
    """Return the screen as text."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=34, force_terminal=False)
    console.print(Screen(view), height=34)
    file.seek(0)
    return file.read()


def test_everything_is_on_one_screen() -> None:
    """Models, memory, requests in flight, hit rate, latency."""
    screen = drawn(View(SAMPLE, 0.0), width=140)
    for text in (
        "mlx-community/Qwen3-8B-4bit",
        "Prefix cache",
        "Free below the limit",
        "3 decode, 1 prefill, 1 wait",
        "87 % of prompt tokens reused",
        "first token p50",
        "pinned",
        "q quits",
    ):
        assert text in screen


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """However narrow it is."""
    lines = drawn(View(SAMPLE, 0.0), width=width).splitlines()
    assert len(lines) == 34
    assert max(map(len, lines)) == width


def test_a_terminal_without_unicode_gets_ascii() -> None:
    """Nothing is lost but looks."""
    screen = drawn(View(SAMPLE, 0.0, speeds=(1.0, 5.0)), encoding="ascii")
    assert screen.isascii()
    assert "5.0 at most" in screen
    assert ".#" in screen


def after(stats: Stats, tokens: int) -> Stats:
    """Return the figures once so many tokens were generated."""
    return replace(stats, engine=replace(stats.engine, generated_tokens=tokens))


def test_speed_is_what_was_generated_between_two_looks() -> None:
    """By the clock of the looks; another engine counts from zero."""
    view = View(after(STATS, 100), at=10.0)
    view = view.next(after(STATS, 150), at=12.0)
    view = view.next(after(STATS, 30), at=13.0)
    assert view.speeds == (25.0, 30.0)


def test_trouble_is_shown_over_the_last_figures() -> None:
    """And goes with the next look that succeeds."""
    view = replace(View(SAMPLE, 0.0), trouble="no daemon answers\x1b[2J")
    assert "no daemon answers\N{REPLACEMENT CHARACTER}[2J" in drawn(view)
    assert "Prefix cache" in drawn(view)
    assert view.next(SAMPLE, 1.0).trouble == ""


def test_a_sparkline_has_a_step_for_each_value() -> None:
    """The largest is the highest."""
    assert sparkline([0, 1, 2, 7], "01234567") == "0127"
    assert sparkline([0, 0], "01") == "00"
    assert sparkline([]) == ""


def test_top_needs_a_terminal(client: FakeClient) -> None:
    """And says what to use instead."""
    result = run_cli(client, "top")
    assert result.exit_code == exits.USAGE
    assert "mlx-sidecar stats" in result.stderr
    assert client.calls == []
