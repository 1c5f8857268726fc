"""
Looks for models by name on this machine's disks, without a download, a load, or a read of large files.

It is a program as well: `mlx-sidecar join` has no TLS in its process, which huggingface_hub cannot do without.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from daemon.shared.config import Config
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.model_names import plain

if TYPE_CHECKING:
    from daemon.cache.digests import Stamp
    from daemon.cache.resolver import Resolver

_ADVICE = {
    Reason.MODEL_NOT_FOUND: "; copy it there under the same path, or correct its name in group_models",
    Reason.MODEL_CORRUPT: "; copy or fetch it there again",
}
"""What to do, where the text of the error does not say it."""

PROGRAM = "daemon.cache.on_disk"
"""The module that looks, in a process of its own."""
_MOST_CHARACTERS = 300
"""Of the last line that a look printed before it failed."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """
    What is known of a model without a read of its weights.

    Attributes:
        model: Hub id, absolute directory, or "embedded".
        fingerprint: Identity of its content; empty if large files of it were never hashed, or it cannot be used.
        size_bytes: Bytes of its weights.
        problem: Why it cannot be loaded, and what to do; empty if nothing was found.
    """

    model: str
    fingerprint: str = ""
    size_bytes: int = 0
    problem: str = ""


async def look(config: Config, models: Sequence[str]) -> list[OnDisk]:
    """
    Look for models in a process of its own.

    Raises:
        OSError: If that process cannot be started, or fails.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        PROGRAM,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        told, errors = await process.communicate(json.dumps([config.to_json(), *models]).encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2][-_MOST_CHARACTERS:]
        raise OSError(0, f"the look for models ended with status {process.returncode}: {last}".removesuffix(": "))
    return [OnDisk(**one) for one in json.loads(told)]


def on_disk(config: Config, models: Sequence[str]) -> list[OnDisk]:
    """Look for models; blocks. Digests of large files are those that an engine noted, or names in the Hub cache."""
    from daemon.cache.digests import Digests  # here: the parent of a rank must not import the Hub's library
    from daemon.cache.resolver import Resolver

    resolver = Resolver(config.model_roots, digests=Digests(_Noted(config)))
    return [_looked_for(resolver, plain(model)) for model in models]


def _looked_for(resolver: Resolver, model: str) -> OnDisk:
    from daemon.cache.resolver import Wanted

    try:
        source = resolver.resolve(Wanted(model, estimate=True, offline=True))
    except SidecarError as error:
        return OnDisk(model, problem=error.message + _ADVICE.get(error.reason, ""))
    return OnDisk(model, str(source.key), source.size_bytes)


class _Noted:
    """The digests that the engine noted. It alone writes them."""

    def __init__(self, config: Config) -> None:
        from daemon.cache.digest_notes import FILE_NAME, DigestFile

        self._file = DigestFile(config.state_dir / FILE_NAME)

    def read(self) -> dict[str, tuple[Stamp, str]]:
        """Return stamps and digests by path."""
        return self._file.read()

    def write(self, known: dict[str, tuple[Stamp, str]]) -> None:
        """Keep the file as it is."""


def main() -> None:
    """Look for the models that standard input names after a configuration, and print them as JSON."""
    from daemon.shared.config_sources import from_json

    config, *models = json.load(sys.stdin)
    json.dump([asdict(one) for one in on_disk(from_json(config), models)], sys.stdout)


if __name__ == "__main__":
    main()
