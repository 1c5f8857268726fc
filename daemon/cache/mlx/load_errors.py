"""Errors of a load: any exception of mlx-lm or MLX becomes an error with a reason that callers can rely on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from daemon.cache.identity import ModelSource
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.machine_faults import machine_fault

_MOST_SAID = 500
"""Characters of a library's message that are passed on: some list every tensor that is missing."""

_UNREAD = ("[read] Unable to read", "[load_safetensors] Failed to open")
"""
How MLX's messages for a file that cannot be read or opened begin. They give no cause. The file's header and size were
right before, so it is the disk.
"""


@contextmanager
def load_errors(source: ModelSource) -> Iterator[None]:
    """
    Turn any exception in a block into a SidecarError: a wrong configuration or file makes mlx-lm raise anything.

    Raises:
        SidecarError: MODEL_UNSUPPORTED or MODEL_CORRUPT; MACHINE_EXHAUSTED or MACHINE_FAULT if it is not the model.
    """
    try:
        yield
    except SidecarError:
        raise
    except SystemExit as error:  # of mlx-lm's olmo, when it is imported; it would end the engine
        raise SidecarError(
            Reason.MODEL_UNSUPPORTED,
            f"{source.name} is not supported by this mlx-lm: its code would end the process, as a Python package that "
            "it needs is not installed; use another model",
        ) from error
    except Exception as error:
        raise _as_sidecar_error(source, error) from error


def _as_sidecar_error(source: ModelSource, error: Exception) -> SidecarError:
    cannot = f"{source.name} cannot be loaded"
    fault = machine_fault(error, cannot)
    if fault is not None:
        return fault
    message = str(error)
    if message.startswith(_UNREAD):
        return SidecarError(
            Reason.MACHINE_FAULT, f"{source.name} cannot be read: {_shortened(message)}; check the disk that it is on"
        )
    is_unsupported = isinstance(error, ValueError) and "not supported" in message  # mlx-lm's text for a model_type
    reason = Reason.MODEL_UNSUPPORTED if is_unsupported else Reason.MODEL_CORRUPT
    problem = f"{source.name} is not supported by this mlx-lm" if is_unsupported else cannot
    return SidecarError(reason, f"{problem}: {type(error).__name__}: {_shortened(message)}")


def _shortened(message: str) -> str:
    return message if len(message) <= _MOST_SAID else f"{message[:_MOST_SAID]} …"
