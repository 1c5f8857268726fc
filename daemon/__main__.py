"""
Entry point of the command line: `python -m daemon` is `mlx-sidecar`.

The distribution python-daemon has a package `daemon` too. Installed later into the same environment, it overwrites
`daemon/__init__.py` and leaves the other files. Imports then fail without a hint at the cause, so `main` checks for it
first.
"""

import os
import sys
from io import TextIOWrapper
from traceback import walk_tb

import daemon

CLASH = (
    "mlx-sidecar: another distribution (python-daemon has one) has overwritten the package `daemon` in {place}. "
    "Give mlx-sidecar an environment of its own; in a checkout of it, run: uv tool install -c daemon/constraints.txt ."
)

NO_CLIENT = (
    "mlx-sidecar: its distribution mlx-sidecar-client is not installed; install mlx-sidecar again, in a checkout by: "
    "uv tool install --reinstall -c daemon/constraints.txt ."
)


def main() -> None:
    """Run the command line, and end the process."""
    if getattr(daemon, "DISTRIBUTION", None) != "mlx-sidecar":
        sys.exit(CLASH.format(place=", ".join(daemon.__path__)))
    if not daemon.__version__:
        sys.exit(NO_CLIENT)
    from daemon.shared.process_setup import empty_large_output, hold_standard_streams, leave_forks_alone

    leave_forks_alone()  # before gRPC is imported
    hold_standard_streams()  # first: a file opened before could get the descriptor of a closed standard stream
    empty_large_output()
    _show_anything()
    from daemon.cli import main as command_line

    try:
        command_line(prog_name="mlx-sidecar")
    except OSError as error:
        if not _was_printing(error):
            raise
        # The interpreter flushes standard output at its end, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(f"mlx-sidecar: standard output: {error.strerror}")


def _show_anything() -> None:
    """Let output that has no Unicode show the rest as escapes: an answer must not end in a traceback."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _was_printing(error: OSError) -> bool:
    """Tell whether an error was raised while printing: standard output goes to a full disk or a broken reader."""
    return any(frame.f_globals.get("__name__") == "click.utils" for frame, _ in walk_tb(error.__traceback__))


if __name__ == "__main__":
    main()
