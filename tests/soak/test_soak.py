"""A short soak: the machinery works, and neither process grows by leaps."""

from __future__ import annotations

import pytest

from tests.soak.__main__ import measure, slopes
from tests.support.repetitions import scaled


@pytest.mark.slow
def test_five_minutes_of_load_do_not_leak() -> None:
    """A slope whose interval lies above zero and above 1 MB an hour; `make soak` looks for longer, and closer."""
    found = slopes(measure(scaled(300), seed=2))
    assert not any(growth.leaks for growth in found.values()), {name: str(growth) for name, growth in found.items()}
