"""Checks of `mlx-sidecar doctor`: the machine, the daemon's files, the service, and a trial daemon."""
