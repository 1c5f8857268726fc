"""The context that tools are told: what the model has, or what fits beside the weights in memory."""

from __future__ import annotations

from dataclasses import replace

from daemon.launch.context import UNKNOWN, context_that_fits
from mlx_sidecar import MemoryStats, Stats
from tests.unit.cli.cli_fakes import GIB, INFO, STATS

LARGE = replace(INFO, context_length=1_000_000, kv_bytes_per_token=100_000, outcome="estimated")


def memory(limit: int, weights: int) -> Stats:
    """Return the state of a daemon with the model in memory."""
    figures = MemoryStats(0, 0, 0, weights, 7 * GIB, 9 * GIB, 0, limit)
    return replace(STATS, memory=figures)


def test_a_model_has_its_own_length_where_memory_is_ample() -> None:
    """Whatever the prefix cache and running requests hold: the one gives way, the others end."""
    assert context_that_fits(replace(LARGE, context_length=40_960), memory(64 * GIB, 4 * GIB)) == 40_960


def test_memory_limits_the_context() -> None:
    """An estimate counts KV twice; the length is a round one."""
    fits = context_that_fits(LARGE, memory(16 * GIB, 4 * GIB))
    assert fits == 12 * GIB // 200_000 // 1024 * 1024
    assert context_that_fits(replace(LARGE, context_length=0), memory(16 * GIB, 4 * GIB)) == fits


def test_weights_that_are_not_loaded_count_too() -> None:
    """For `--print`, which loads nothing."""
    other = replace(LARGE, fingerprint="0" * 64, size_bytes=8 * GIB)
    assert context_that_fits(other, memory(16 * GIB, 4 * GIB)) == 4 * GIB // 200_000 // 1024 * 1024


def test_little_memory_still_has_a_length() -> None:
    """Less than a thousand tokens are not rounded to none."""
    assert context_that_fits(LARGE, memory(4 * GIB + 100_000_000, 4 * GIB)) == 500
    assert context_that_fits(LARGE, memory(GIB, 4 * GIB)) == 0


def test_a_state_that_does_not_grow_fits() -> None:
    """Recurrent models have no KV for each token."""
    recurrent = replace(LARGE, kv_bytes_per_token=0)
    assert context_that_fits(recurrent, memory(16 * GIB, 4 * GIB)) == 1_000_000
    assert context_that_fits(replace(recurrent, context_length=0), memory(16 * GIB, 4 * GIB)) == UNKNOWN


def test_a_loaded_model_has_what_the_daemon_serves() -> None:
    """A chosen length that does not fit is not told, and idle models in memory count no more than for the daemon."""
    loaded = replace(LARGE, outcome="hit", max_request_tokens=50_000)
    assert context_that_fits(loaded, memory(16 * GIB, 16 * GIB)) == 49_152
    assert context_that_fits(replace(loaded, context_length=50_000), memory(16 * GIB, 4 * GIB)) == 50_000
    assert context_that_fits(replace(loaded, max_request_tokens=0), memory(16 * GIB, 4 * GIB)) == 0
