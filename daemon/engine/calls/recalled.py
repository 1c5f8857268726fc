"""What callers asked of models before the engine was started anew; it holds from their next load on."""

from __future__ import annotations

from daemon.shared.durations import seconds
from mlx_sidecar.v1 import sidecar_pb2 as pb


class Recalled:
    """Pins and times to live that wait for the load of their model."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], pb.GetOrLoadRequest] = {}

    def keep(self, request: pb.GetOrLoadRequest) -> None:
        """Remember what was asked."""
        self._asked[request.model, request.adapter] = request

    def pin(self, model: str, adapter: str) -> bool | None:
        """Whether a model is to be pinned or unpinned; None for neither."""
        asked = self._asked.get((model, adapter))
        return asked.pin if asked is not None and asked.HasField("pin") else None

    def ttl(self, model: str, adapter: str) -> float | None:
        """The time to live of a model in seconds; None for the usual one."""
        asked = self._asked.get((model, adapter))
        return seconds(asked.ttl) if asked is not None and asked.HasField("ttl") else None

    def done(self, model: str, adapter: str) -> None:
        """Forget what was asked: it holds now. Harmless twice."""
        self._asked.pop((model, adapter), None)

    def forget(self, model: str | None = None) -> None:
        """Forget a model, or all, because its weights were dropped for good."""
        self._asked = {key: asked for key, asked in self._asked.items() if model is not None and key[0] != model}
