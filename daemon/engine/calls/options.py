"""Turns a Generate request of the public proto into the engine's own types, with the defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from daemon.cache.identity import ModelSource
from daemon.engine.execution.request import Request, SamplingParams, Speculation
from daemon.engine.prompt.preparation import PreparedRequest
from daemon.shared import readings
from mlx_sidecar.v1 import sidecar_pb2 as pb

SEED_STEP = 0x9E3779B97F4A7C15
"""Distance of the seeds of two samples: 2^64 divided by the golden ratio, so that neighbouring seeds share none."""


def requests_of(call_id: int, message: pb.GenerateRequest, ready: PreparedRequest, program: str) -> list[Request]:
    """Return the samples of a request as scheduling and execution see them, each with its own seed."""
    first = request_of(call_id, message, ready, program)
    return [first, *(_sample(first, index) for index in range(1, message.samples))]


def _sample(first: Request, index: int) -> Request:
    seed = ((first.sampling.seed or 0) + index * SEED_STEP) % 2**64
    return replace(first, index=index, sampling=replace(first.sampling, seed=seed))


def request_of(call_id: int, message: pb.GenerateRequest, ready: PreparedRequest, program: str) -> Request:
    """
    Return a request as scheduling and execution see it; of several samples the first.

    Args:
        call_id: The call that it came with.
        message: The validated request.
        ready: Its prompt, its model and the tokenizer of that.
        program: The program that called; empty if it is not known.
    """
    stop, eos_ids = message.stop, ready.tokenizer.eos_ids
    sampling = sampling_of(message, ready.source)
    if sampling.temperature > 0 and sampling.seed is None:
        sampling = replace(sampling, seed=readings.random_bits())
    return Request(
        call_id=call_id,
        request_id=message.request_id,
        model_name=ready.source.name,
        prompt=ready.prompt.tokens,
        max_tokens=ready.prompt.max_tokens,
        sampling=sampling,
        stop_ids=frozenset(stop.token_ids) | (frozenset() if stop.ignore_eos else eos_ids),
        message_ends=eos_ids,
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
        priority=message.priority,
        warnings=ready.prompt.warnings,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        speculation=Speculation(message.speculation or pb.SPECULATION_AUTO),
        places=ready.prompt.places,
        program=program,
    )


def sampling_of(message: pb.GenerateRequest, source: ModelSource) -> SamplingParams:
    """Return the sampling options of a request to a model."""
    return sampling_params(message.sampling, source.default_sampling if message.sampling.model_defaults else {})


def sampling_params(sampling: pb.Sampling, defaults: Mapping[str, float] = {}) -> SamplingParams:
    """
    Return validated sampling options; a field that is not set gets its default.

    Args:
        sampling: The options.
        defaults: The model's own, by name.
    """
    if defaults:
        recommended = pb.Sampling()
        for name, value in defaults.items():
            setattr(recommended, name, value)
        recommended.MergeFrom(sampling)
        sampling = recommended
    names = [name for name in SamplingParams.__slots__ if name != "logit_bias" and sampling.HasField(name)]
    given: dict[str, Any] = {name: getattr(sampling, name) for name in names}
    return SamplingParams(**given, logit_bias=tuple(sorted(sampling.logit_bias.items())))
