"""`ps` and `stats`: readable for people, whole for programs."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from mlx_sidecar import CallerStats, Invalidated, KeptPrefix, MissCounts
from tests.unit.cli.cli_fakes import INFO, MIB, MODEL_STATS, STATS, FakeClient, client_fixture, run_cli  # noqa: F401
from tests.unit.server.stats_sample import SAMPLE


def test_ps_lists_models_and_the_prefix_cache(client: FakeClient) -> None:
    client.state = replace(
        STATS,
        models=(
            MODEL_STATS,
            replace(MODEL_STATS, info=replace(INFO, model="b"), pinned=True, expires_in=None),
            replace(MODEL_STATS, info=replace(INFO, model="c"), in_use=2, expires_in=None),
            replace(MODEL_STATS, info=replace(INFO, model="d"), expires_in=0.0),
            replace(MODEL_STATS, info=replace(INFO, model="e"), state="loading", expires_in=None),
        ),
    )

    result = run_cli(client, "ps")

    assert result.stdout.splitlines() == [
        "MODEL     SIZE     STATE    IN USE  UNTIL",
        "org/name  3.0 GiB  ready    0       in 4 minutes",
        "b         3.0 GiB  ready    0       pinned",
        "c         3.0 GiB  ready    2       in use",
        "d         3.0 GiB  ready    0       now",
        "e         3.0 GiB  loading  0       -",
        "Prefix cache: 1.0 GiB of 4.0 GiB in 1,234 blocks, 87 % of prompt tokens reused",
    ]


def test_block_and_token_counts_have_a_singular(client: FakeClient) -> None:
    """Every command that prints a count uses the singular for one."""
    client.state = replace(STATS, prefix_cache=replace(STATS.prefix_cache, blocks=1))
    client.dropped = Invalidated((), 1, 0, 0)

    assert "in 1 block," in run_cli(client, "ps").stdout
    assert run_cli(client, "invalidate", "m", "--yes").stdout == "Dropped 1 block of cached prefixes; 0 B freed.\n"


def test_ps_says_when_nothing_is_loaded(client: FakeClient) -> None:
    client.state = replace(STATS, models=())

    assert run_cli(client, "ps").stdout.startswith("No model is in memory.\nPrefix cache: ")


def test_ps_says_when_its_data_is_stale(client: FakeClient) -> None:
    assert not run_cli(client, "ps").stderr
    client.state = replace(STATS, engine=replace(STATS.engine, state="stalled"))

    result = run_cli(client, "ps")

    assert result.exit_code == 0
    assert result.stderr == "The engine is stalled; see the daemon's log.\n"


def test_ps_json_has_models_and_prefix_cache(client: FakeClient) -> None:
    tree = json.loads(run_cli(client, "ps", "--json").stdout)

    assert tree["models"][0]["info"]["model"] == "org/name"
    assert tree["models"][0]["expires_in"] == 240.0
    assert tree["prefix_cache"]["blocks"] == 1234


def test_stats_shows_every_section_and_figure(client: FakeClient) -> None:
    lines = run_cli(client, "stats").stdout.splitlines()

    assert [line for line in lines if not line.startswith(" ")] == [
        "daemon",
        "model cache",
        "model org/name",
        "prefix cache",
        "engine",
        "memory",
        "latency",
    ]
    text = {" ".join(line.split()) for line in lines}
    assert {
        "pid 77",
        "uptime 2 hours",
        "draining no",
        "hit rate 75 %",
        "oldest entry age -",
        "budget bytes 24.0 GiB",
        "max blocks 262,144",
        "expires in 4 minutes",
        "state ready",
        "names -",
        "http serving 127.0.0.1:8080, pid 78",
    } <= text


def test_stats_show_misses_and_kept_prefixes(client: FakeClient) -> None:
    kept = (KeptPrefix("0" * 16, 1600, 5 * MIB, 3000.0), KeptPrefix("0" * 16, 16, 2048, None))
    cache = replace(STATS.prefix_cache, misses=MissCounts(evicted=1200, resume_point=2), kept=kept)
    client.state = replace(STATS, prefix_cache=cache)

    text = {" ".join(line.split()) for line in run_cli(client, "stats").stdout.splitlines()}

    assert "misses 1,200 evicted, 2 resume point" in text
    assert "kept 1,600 tokens, 5.0 MiB, for 50 minutes; 16 tokens, 2.0 KiB, for 0 seconds" in text


def test_ps_and_stats_show_all_names_of_a_model(client: FakeClient) -> None:
    client.state = replace(STATS, models=(replace(STATS.models[0], names=("org/name", "/copy")),))

    assert "org/name = /copy " in run_cli(client, "ps").stdout
    assert "org/name, /copy" in run_cli(client, "stats").stdout


def test_stats_json_is_the_whole_tree(client: FakeClient) -> None:
    tree = json.loads(run_cli(client, "stats", "--json").stdout)

    assert list(tree) == ["daemon", "model_cache", "models", "prefix_cache", "engine", "memory", "latency", "group"]
    assert tree["model_cache"]["oldest_entry_age"] is None
    assert tree["memory"]["limit_bytes"] == 8


def test_stats_shows_the_programs_that_call(client: FakeClient) -> None:
    """In one line; without any, a dash."""
    assert re.search(r"callers +-\n", run_cli(client, "stats").stdout)
    caller = CallerStats(4711, "my-agent", declared=True, waiting=0, running=1, calls=3, last_call=0.5)
    client.state = replace(SAMPLE, engine=replace(SAMPLE.engine, callers=(caller,)))
    assert "my-agent (4711): 1 run, 0 wait, 3 so far\n" in run_cli(client, "stats").stdout
