"""
`python -m daemon` is `mlx-sidecar`.

python-daemon has a package of this name too. Installed into the same environment after us, it overwrites our
`__init__.py` and leaves the rest; then nothing works, and no error that follows would say why.
"""

import os
import sys
from traceback import walk_tb

import daemon

CLASH = (
    "mlx-sidecar: another distribution (python-daemon has one) has overwritten the package `daemon` in {place}. "
    "Give mlx-sidecar an environment of its own; in a checkout of it, run: uv tool install -c daemon/constraints.txt ."
)


def main() -> None:
    """Run the command line, and end the process."""
    if getattr(daemon, "DISTRIBUTION", None) != "mlx-sidecar":
        sys.exit(CLASH.format(place=", ".join(daemon.__path__)))
    from daemon.shared.process_setup import hold_standard_streams

    hold_standard_streams()  # before anything is opened that could get their numbers
    from daemon.cli import main as command_line

    try:
        command_line(prog_name="mlx-sidecar")
    except OSError as error:
        if not _was_printing(error):
            raise
        # What could not be written would be tried again at the end of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(f"mlx-sidecar: standard output: {error.strerror}")


def _was_printing(error: OSError) -> bool:
    """Tell whether an error is that of standard output: the disk that it goes to is full, or its reader is broken."""
    return any(frame.f_globals.get("__name__") == "click.utils" for frame, _ in walk_tb(error.__traceback__))


if __name__ == "__main__":
    main()
