"""Rules of sampling options: their ranges, and which of them have no effect on a greedy answer."""

from __future__ import annotations

import math
from collections.abc import Mapping

from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (math.ulp(0.0), 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (math.ulp(0.0), 10),
    "presence_penalty": (-10, 10),
    "frequency_penalty": (-10, 10),
}
"""Least and largest value of each option, inclusive."""

_CHOICES = {"top_p": 1, "top_k": 0, "min_p": 0, "seed": None}
"""Options that choose among several tokens, and the value of each that keeps all of them."""


def default_temperature(defaults: Mapping[str, float]) -> float:
    """Return the temperature of a model's own sampling; 0 (greedy) if it recommends none."""
    return defaults.get("temperature", 0.0)


def check_effects(request: pb.GenerateRequest, default: float | None) -> None:
    """
    Refuse sampling options that cannot have an effect, because the answer is greedy.

    Args:
        request: The request.
        default: The temperature of its model's own sampling; None if it is not known, and then nothing is refused that
            depends on it.

    Raises:
        SidecarError: INVALID_ARGUMENT with the option, or at `samples`.
    """
    sampling = request.sampling
    if sampling.HasField("temperature") or not sampling.model_defaults:
        temperature, reason = sampling.temperature, "at temperature 0"
    elif default is None:
        return
    else:
        temperature, reason = default, "because greedy is the default of this model"
    if temperature > 0:
        return
    for name, neutral in _CHOICES.items():
        if sampling.HasField(name) and getattr(sampling, name) != neutral:
            raise invalid(f"sampling.{name}", f"has no effect {reason}; leave it out, or set sampling.temperature")
    if request.samples > 1:
        raise invalid("samples", f"would all be equal {reason}; set sampling.temperature")
