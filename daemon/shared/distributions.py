"""
Compares the two installed distributions of the project, the daemon's and its client's, which have to be of one version.

The client's package has the messages of the API. With other messages than its own, a daemon could take a field that it
does not know for one that it has checked. Installers keep the versions equal; a person can upgrade one of them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

DAEMON, CLIENT = "mlx-sidecar", "mlx-sidecar-client"
AGAIN = "install mlx-sidecar again, with --force or --reinstall, which brings its client"


def mismatch(installed: Callable[[str], str] = version) -> str:
    """
    Return a sentence about two versions that differ; empty if they are equal, or if the daemon was not installed.

    Args:
        installed: Returns the version of a distribution, or raises PackageNotFoundError.
    """
    try:
        daemon, client = installed(DAEMON), installed(CLIENT)
    except PackageNotFoundError:
        return ""
    return "" if daemon == client else f"{DAEMON} {daemon} does not go with {CLIENT} {client}; {AGAIN}"
