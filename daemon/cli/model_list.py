"""The models of this machine for `ls`, `show` and `rm`: from the daemon, or from the disk while none runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_sidecar import DaemonNotRunning, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.cache.listing import DiskModel
    from daemon.cli.session import Session
    from daemon.shared.config import Config
    from mlx_sidecar import ListedModel, ModelList


@dataclass(frozen=True, slots=True)
class Listing:
    """
    The models of this machine.

    Attributes:
        found: The models.
        from_daemon: Whether a daemon listed them.
    """

    found: ModelList
    from_daemon: bool

    def named(self, name: str) -> ListedModel | None:
        """Return the model that a name or a short name stands for; None if it is not listed."""
        wanted = self.found.aliases.get(name, name)
        return next((model for model in self.found.models if model.model == wanted), None)


def listed(session: Session) -> Listing:
    """
    Return the models of this machine. Without a daemon that can list them, they are read from the disk here.

    Raises:
        SidecarError: If the daemon refuses.
        ConfigError: If no daemon runs, and the configuration is wrong.
    """
    try:
        with session.client() as client:
            return Listing(client.list_models(), from_daemon=True)
    except DaemonNotRunning:
        return Listing(_on_disk(session.config()), from_daemon=False)
    except ProtocolError as error:
        if error.code != "UNIMPLEMENTED":
            raise
        return Listing(_on_disk(session.config()), from_daemon=False)


def _on_disk(config: Config) -> ModelList:
    from huggingface_hub import constants

    from daemon.cache.listing import embedded_model, hub_models, root_models
    from daemon.shared.errors import SidecarError
    from mlx_sidecar import ModelList, UnreadPlace

    models, unread = [*embedded_model(), *hub_models(Path(constants.HF_HUB_CACHE))], []
    for root in config.model_roots:
        try:
            models += root_models(root)
        except SidecarError as error:
            unread.append(UnreadPlace(str(root), error.message))
    budget = config.model_cache_bytes
    shown = [_shown(model, config.aliases, budget) for model in sorted(models, key=lambda model: model.model.lower())]
    return ModelList(tuple(shown), tuple(unread), budget, truncated=False, aliases=config.aliases)


def _shown(model: DiskModel, aliases: Mapping[str, str], budget: int) -> ListedModel:
    from mlx_sidecar import ListedModel, ModelAbilities

    return ListedModel(
        model=model.model,
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == model.model)),
        place=model.place,
        loaded=False,
        complete=model.complete,
        size_bytes=model.size_bytes,
        disk_bytes=model.disk_bytes,
        fits=not budget or model.size_bytes <= budget,
        architecture=model.architecture,
        context_length=model.context_length,
        quantization_bits=model.quantization_bits,
        revision=model.revision,
        can=ModelAbilities(model.chat, model.tools, model.reasoning, model.embeddings),
        problem=model.problem,
        path=str(model.path),
        last_used_unix_seconds=int(model.last_used),
    )
