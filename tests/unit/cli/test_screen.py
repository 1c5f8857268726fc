"""The screen of `top`: what it shows at which width, and how it goes from one look to the next."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from daemon.cli import exit_codes
from daemon.cli.output.rows import sparkline
from daemon.cli.terminal.screen import Screen, View
from mlx_sidecar import CallerStats, Stats
from tests.unit.cli.cli_fakes import INFO, MIB, MODEL_STATS, STATS, FakeClient, client_fixture, run_cli  # noqa: F401
from tests.unit.server.stats_sample import SAMPLE


def drawn(view: View, width: int = 100, encoding: str = "utf-8", height: int = 34) -> str:
    """Return the screen as text."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, force_terminal=False)
    console.print(Screen(view), height=height)
    file.seek(0)
    return file.read()


def test_top_screen_shows_every_section() -> None:
    """One screen has models, memory, requests in flight, hit rate and latency."""
    screen = drawn(View(SAMPLE, 0.0), width=140)
    for text in (
        "mlx-community/Qwen3-8B-4bit",
        "Prefix cache",
        "Free below the limit",
        "3 decode, 1 prefill, 1 wait",
        "87 % of prompt tokens reused",
        "first token p50",
        "missed: 40 never seen, 12 diverged, 3 evicted",
        "3.0 GiB of 8.0 GiB on the disk, 17 % of prompt tokens from there",
        "2 prefixes kept for 40 minutes or longer, 200.0 MiB",
        "pinned",
        "q quits",
    ):
        assert text in screen


def test_top_screen_shows_the_busiest_callers() -> None:
    """Three of them, and the calls of unknown processes as those of one."""
    callers = tuple(
        CallerStats(pid, program, declared=True, waiting=1, running=2, calls=1700, last_call=0.5)
        for pid, program in [(4711, "my-agent"), (0, ""), (4712, "node"), (4713, "go")]
    )
    screen = drawn(View(replace(SAMPLE, engine=replace(SAMPLE.engine, callers=callers)), 0.0), width=140)
    assert "my-agent (4711): 2 run, 1 wait, 1,700 so far" in screen
    assert "unknown: 2 run, 1 wait, 1,700 so far" in screen
    assert "node (4712)" in screen
    assert "go (4713)" not in screen


@pytest.mark.parametrize("width", [40, 80, 200])
def test_top_screen_line_fits_the_terminal_width(width: int) -> None:
    """No line is wider than the terminal, however narrow it is."""
    lines = drawn(View(SAMPLE, 0.0), width=width).splitlines()
    assert len(lines) == 34
    assert max(map(len, lines)) == width


SMALL = replace(
    SAMPLE,
    models=tuple(
        replace(MODEL_STATS, names=(f"mlx-community/SmolLM2-{n}-4bit",), info=replace(INFO, size_bytes=25 * MIB))
        for n in range(8)
    ),
    memory=replace(SAMPLE.memory, weights_bytes=200 * MIB, trie_bytes=3 * MIB, live_kv_bytes=0),
)
"""Many models of 25 MiB below a limit of 28 GiB."""


def test_top_screen_cuts_no_value_on_a_small_terminal() -> None:
    """50 x 12: state, memory, what runs, reuse, latency, speed, and models whose sizes and states are whole."""
    lines = drawn(View(SAMPLE, 0.0, speeds=(1.0, 20.0, 3.0)), width=50, height=12).splitlines()

    assert len(lines) == 12
    assert "engine ready" in lines[0]
    for text in (
        "20.1 GiB of 28.0 GiB used █",
        "3 decode, 1 prefill, 1 wait",
        "87 % of prompt tokens reused",
        "first token p50 178 ms, p99 2.4 s",
        "3.0 tokens/s now, 20.0 at most",
        "Qwen3-8B-4bit    4.6 GiB  ready ",
        "gpt-oss-20b-MXFP4-Q4   11.2 GiB  pinned",
        "q quits",
    ):
        assert any(text in line for line in lines), text


def test_top_screen_counts_the_models_left_out() -> None:
    """The last line says how many models are left out; shortened names keep their distinct end."""
    lines = drawn(View(SMALL, 0.0), width=50, height=12).splitlines()

    shown = [line for line in lines if "25.0 MiB" in line]
    assert [f"SmolLM2-{n}-4bit  25.0 MiB  ready" in line for n, line in enumerate(shown)] == [True] * len(shown)
    assert f"and {8 - len(shown)} more" in "\n".join(lines)


@pytest.mark.parametrize(
    ("width", "height"), [(50, 12), (60, 20), (80, 24), (80, 30), (110, 40), (30, 8), (20, 5), (1, 1)]
)
def test_top_screen_has_the_size_of_the_terminal(width: int, height: int) -> None:
    """Neither many small models nor few columns break its lines."""
    for stats in (SAMPLE, SMALL, STATS, replace(STATS, models=())):
        for trouble in ("", "no daemon answers at /a/long/path/to/a/socket; start it with: mlx-sidecar serve"):
            lines = drawn(View(stats, 0.0, (1.0,) * 400, trouble), width=width, height=height).splitlines()
            assert [len(line) for line in lines] == [width] * height


def test_top_screen_bar_shows_a_25_mib_model() -> None:
    """A small model still gets one cell of the memory bar."""
    rows = [line for line in drawn(View(SMALL, 0.0), width=110, height=40).splitlines() if "25.0 MiB" in line]
    assert len(rows) == 16
    assert all(set("▏▎▍▌▋▊▉█▐") & set(line) for line in rows[:8])


def test_top_screen_error_is_whole_on_a_small_terminal() -> None:
    """The whole error text is shown, with its fix."""
    trouble = "no mlx-sidecar answers at /Users/ada/.mlx-sidecar/sidecar.sock (nobody answers); start it with: serve"
    screen = drawn(View(SAMPLE, 0.0, trouble=trouble), width=50, height=12)
    assert trouble in " ".join(screen.split())


def test_top_screen_without_unicode_is_ascii() -> None:
    """Without Unicode, only the characters of bars and frames change."""
    screen = drawn(View(SAMPLE, 0.0, speeds=(1.0, 5.0)), encoding="ascii")
    assert screen.isascii()
    assert "5.0 at most" in screen
    assert ".#" in screen


def after(stats: Stats, tokens: int) -> Stats:
    """Return the figures once so many tokens were generated."""
    return replace(stats, engine=replace(stats.engine, generated_tokens=tokens))


def test_top_screen_speed_is_tokens_between_refreshes() -> None:
    """Speed is measured by the clock of the refreshes; a restarted engine counts from zero."""
    view = View(after(STATS, 100), at=10.0)
    view = view.next(after(STATS, 150), at=12.0)
    view = view.next(after(STATS, 30), at=13.0)
    assert view.speeds == (25.0, 30.0)


def test_top_screen_error_keeps_the_last_values() -> None:
    """The error disappears with the next successful call."""
    view = replace(View(SAMPLE, 0.0), trouble="no daemon answers\x1b[2J")
    assert "no daemon answers\N{REPLACEMENT CHARACTER}[2J" in drawn(view)
    assert "Prefix cache" in drawn(view)
    assert view.next(SAMPLE, 1.0).trouble == ""


def test_sparkline_has_a_step_for_each_value() -> None:
    """The largest value has the highest step."""
    assert sparkline([0, 1, 2, 7], "01234567") == "0127"
    assert sparkline([0, 0], "01") == "00"
    assert sparkline([]) == ""


def test_top_needs_a_terminal(client: FakeClient) -> None:
    """The error names `mlx-sidecar stats` as the alternative."""
    result = run_cli(client, "top")
    assert result.exit_code == exit_codes.USAGE
    assert "mlx-sidecar stats" in result.stderr
    assert client.calls == []
