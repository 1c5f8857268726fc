"""
Finds ranks of a group that wait for each other for ever, because one of them went on alone.

All ranks pass the same places of the tape (`Tape.place`), and a healthy one is behind for milliseconds. A rank that
fails by itself, in a load or in a pass, leaves the operation that the others wait in. It then ends its turn, or asks
for a reading that the first rank has not taken: its place differs, and no rank moves any more.

No rank can notice that by itself. MLX's collective operations wait without a limit, and the MLX thread waits in them.
But threads go on, as MLX releases Python's lock meanwhile. Each rank's beat tells its place (`connection.py`), and a
thread of the first rank compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import sleep

from daemon.engine.group.connection import Connection
from daemon.shared.observed_time import SeenTime

PARTED_SECONDS = 6.0
"""After so long at different places, the ranks have parted. With a beat and a look, callers know within 8 seconds."""
_BEFORE_SECONDS = 2.0
"""What failed is told so long before the places are found to differ, at most: by then a beat and a look have come."""
_LOOK_SECONDS = 0.5
_MOST_BETWEEN = 1.0
"""Seconds that count between two looks: a process that was stopped itself blames no other."""


class Lockstep:
    """
    Compares the places of the ranks, on the first rank.

    Args:
        own: Returns the place of the first rank.
        others: Connections to the other ranks.
        clock: Seconds that never go back.
        parted: Called when ranks have parted, with what is known; must end the process.
    """

    def __init__(
        self,
        own: Callable[[], int],
        others: Sequence[Connection],
        clock: Callable[[], float],
        parted: Callable[[str], None],
    ) -> None:
        self._own = own
        self._others = others
        self._seen = SeenTime(clock, _MOST_BETWEEN)
        self._parted = parted
        self._places: list[int] = []
        self._since = self._seen()
        self._troubles: dict[str, tuple[float, str]] = {}

    def trouble(self, name: str, what: str) -> None:
        """Note what failed at a rank; any thread. The others may have failed alike, and go on."""
        self._troubles[name] = self._seen(), what

    def watch(self) -> None:
        """Look again and again; runs on a thread of its own."""
        while True:
            self.look()
            sleep(_LOOK_SECONDS)

    def look(self) -> None:
        """Compare the places once."""
        places, now = [self._own(), *(other.place for other in self._others)], self._seen()
        if len(set(places)) == 1 or places != self._places:
            self._places, self._since = places, now
        elif now - self._since > PARTED_SECONDS:
            self._parted(self._known(now - PARTED_SECONDS - _BEFORE_SECONDS))

    def _known(self, since: float) -> str:
        """Return what is known of ranks that have parted."""
        recent = [f"{name} failed alone: {what}" for name, (when, what) in self._troubles.items() if when >= since]
        return (
            "; ".join(recent) or "ranks wait for each other; one failed alone or is too slow, and its log may have more"
        )
