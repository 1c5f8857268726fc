"""
`python -m daemon` is `mlx-sidecar`.

python-daemon has a package of this name too. Installed into the same environment after us, it overwrites our
`__init__.py` and leaves the rest; then nothing works, and no error that follows would say why.
"""

import sys

import daemon

CLASH = (
    "mlx-sidecar: another distribution (python-daemon has one) has overwritten the package `daemon` in {place}. "
    "Give mlx-sidecar an environment of its own: uv tool install mlx-sidecar"
)


def main() -> None:
    """Run the command line, and end the process."""
    if getattr(daemon, "DISTRIBUTION", None) != "mlx-sidecar":
        sys.exit(CLASH.format(place=", ".join(daemon.__path__)))
    from daemon.surroundings import hold_standard_streams

    hold_standard_streams()  # before anything is opened that could get their numbers
    from daemon.cli import main as command_line

    command_line(prog_name="mlx-sidecar")


if __name__ == "__main__":
    main()
