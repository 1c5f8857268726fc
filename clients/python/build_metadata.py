"""
Metadata that depends on where a distribution is built: the page of an index, its URLs, and the daemon's own client.

Both distributions use this hook of hatchling, in four surroundings:

    surroundings                             recognised by                         the daemon asks for its client
    a checkout, as in `uv tool install .`    none of those below                   by its path: no index is asked
    a clone of pip (`pip install git+…`)     pip's name for such a folder          by the address of the clone
    a release, or an editable installation   SIDECAR_BUILD_CLIENT_BY_NAME is set   by name and version
    an unpacked source distribution          hatchling has read its PKG-INFO       as PKG-INFO says: by name

A link of README.md to another file leads nowhere on the page of an index. With SIDECAR_BUILD_REPOSITORY, the address of
the project's page, such links become absolute; without it they become plain text.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

CLIENT = "mlx-sidecar-client"
LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\((?![a-z]+:|#)([^()\s]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """
    The hook. Its table in pyproject.toml has `folder`, the project's place within the checkout.

    For the daemon it also has `dependencies`, to which the client is added, and `client`, the folder of the client.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in the dynamic fields, unless a source distribution has them recorded."""
        if "readme" in metadata:
            return
        root, folder = Path(self.root), str(self.config.get("folder", ""))
        client = root / str(self.config.get("client", ""))
        version = _version(client / "mlx_sidecar" / "_version.py")
        home = os.environ.get("SIDECAR_BUILD_REPOSITORY", "").rstrip("/")
        text = page((root / "README.md").read_text("utf-8"), f"{home}/blob/v{version}" if home else "", folder)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = _urls(home, version) if home else {}
        if "dependencies" in self.config:
            by_name = os.environ.get("SIDECAR_BUILD_CLIENT_BY_NAME")
            wanted = f"{CLIENT}=={version}" if by_name else f"{CLIENT} @ {_address(root, client)}"
            metadata["dependencies"] = [*self.config["dependencies"], wanted]


def page(text: str, base: str, folder: str) -> str:
    """
    Return a README for the page of an index.

    Args:
        text: The README; its links to other files are relative.
        base: Address of the checkout's root, to which such links are resolved; empty to unlink them.
        folder: The README's folder within the checkout.
    """
    if not base:
        return LINK.sub(r"\1", text)
    return LINK.sub(lambda link: f"[{link[1]}]({base}/{posixpath.normpath(posixpath.join(folder, link[2]))})", text)


def _version(path: Path) -> str:
    found = re.search(r'__version__ = "([^"]+)"', path.read_text("utf-8"))
    assert found is not None, path
    return found[1]


def _address(root: Path, client: Path) -> str:
    """Return where a checkout's client is. A clone of pip is gone after the installation, and pip keeps the wheel."""
    if not (root.name.startswith("pip-req-build-") and (root / ".git").exists()):
        return client.resolve().as_uri()
    url, commit = _git(root, "remote", "get-url", "origin"), _git(root, "rev-parse", "HEAD")
    return f"git+{url}@{commit}#subdirectory={client.relative_to(root).as_posix()}"


def _git(root: Path, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _urls(home: str, version: str) -> dict[str, str]:
    return {
        "Repository": home,
        "Documentation": f"{home}/blob/v{version}/docs/README.md",
        "Changelog": f"{home}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{home}/issues",
        "Security": f"{home}/blob/v{version}/SECURITY.md",
    }
