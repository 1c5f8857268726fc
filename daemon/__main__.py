"""`python -m daemon` is `mlx-sidecar`."""

from daemon.cli import main

if __name__ == "__main__":
    main(prog_name="mlx-sidecar")
