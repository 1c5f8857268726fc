"""Weights in formats that are never read: each is refused with what to do instead."""

from __future__ import annotations

from pathlib import Path

from daemon.errors import Reason, SidecarError

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".npy"}


def refuse_other_formats(name: str, path: Path, weights: list[Path]) -> None:
    """
    Refuse a model without weights that mlx-lm would read. No file is opened.

    Args:
        name: The model's name.
        path: Its directory.
        weights: The safetensors files below it.

    Raises:
        SidecarError: MODEL_UNSUPPORTED.
    """
    if any(file.parent == path and file.name.startswith("model") for file in weights):
        return
    suffixes = {file.suffix.lower() for file in path.iterdir()}
    if ".gguf" in suffixes:
        why = "has GGUF weights, which mlx-sidecar does not read; take the original model and convert it"
    elif found := sorted(suffixes & _PICKLES):
        why = f"has only {', '.join(found)} weights, which can run code when they are read and never are; convert it"
    else:
        why = "has no model*.safetensors weights; convert it"
    raise SidecarError(Reason.MODEL_UNSUPPORTED, f"{name} {why} with mlx_lm.convert")
