"""
`python -m daemon` is `mlx-sidecar`.

python-daemon has a package of this name too. Installed into the same environment after us, it overwrites our
`__init__.py` and leaves the rest; then nothing works, and no error that follows would say why.
"""

import sys

import daemon

CLASH = (
    "mlx-sidecar: another distribution (python-daemon has one) has overwritten the package `daemon` in {place}. "
    "Give mlx-sidecar an environment of its own; in a checkout of it, run: uv tool install -c daemon/constraints.txt ."
)


def main() -> None:
    """Run the command line, and end the process."""
    if getattr(daemon, "DISTRIBUTION", None) != "mlx-sidecar":
        sys.exit(CLASH.format(place=", ".join(daemon.__path__)))
    from daemon.cli import main as command_line

    command_line(prog_name="mlx-sidecar")


if __name__ == "__main__":
    main()
