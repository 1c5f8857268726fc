"""Log lines that a stranger can cause: at once, then one a minute with a count."""

from __future__ import annotations

from daemon.shared.log_pace import MOST_KEPT, PACE_SECONDS, LogPace


def test_flood_of_one_kind_is_logged_once_a_minute() -> None:
    """With the number since the last line; another kind has a pace of its own."""
    now = 0.0
    pace = LogPace(lambda: now)
    assert [pace.due("invalid_api_key") for _ in range(4)] == [1, 0, 0, 0]
    assert pace.due("invalid_host") == 1
    now = PACE_SECONDS - 0.1
    assert pace.due("invalid_api_key") == 0
    now = PACE_SECONDS
    assert [pace.due("invalid_api_key") for _ in range(2)] == [5, 0]
    now = 10 * PACE_SECONDS
    assert pace.due("invalid_api_key") == 2


def test_pace_of_lines_remembers_a_bounded_number() -> None:
    """Of lines that are new each time, all are logged; what is forgotten is told anew."""
    pace = LogPace(lambda: 0.0, 5.0)
    assert [pace.due(str(number)) for number in range(MOST_KEPT)] == [1] * MOST_KEPT
    assert (pace.due("0"), pace.due("another"), pace.due("0")) == (0, 1, 1)
