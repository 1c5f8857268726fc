"""Signals that reach the parent and its children at once: the parent handles them, and its children do not."""

from __future__ import annotations

import signal

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C on a terminal, the stop of a systemd unit, and a terminal that is closed."""


def ignore_group_signals() -> None:
    """Ignore them in a child, and let through those that its parent held back until now. Comes before slow imports."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
