"""Garbage of an idle engine is collected, although what it keeps is not gone through each time."""

from __future__ import annotations

import subprocess
import sys

FORGOTTEN = """
import gc, weakref
from daemon.engine.__main__ import COLLECT_ALL_SECONDS, IdleCollector

class Loop:
    pass

gc.disable()
now = [0.0]
collect = IdleCollector(lambda: now[0])
cycle = Loop()
cycle.itself = cycle
dropped = weakref.ref(cycle)
collect()
assert gc.get_freeze_count() > 1000
del cycle
collect()
assert dropped() is not None
now[0] += COLLECT_ALL_SECONDS
collect()
assert dropped() is None
assert gc.get_freeze_count() > 1000
"""


def test_cycle_dropped_after_an_idle_second_is_freed() -> None:
    """Tokenizers are part of such cycles; after months of models that come and go, they would fill the memory."""
    subprocess.run([sys.executable, "-c", FORGOTTEN], check=True, timeout=300)
