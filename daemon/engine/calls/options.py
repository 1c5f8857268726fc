"""Turns a Generate request of the public proto into the engine's own types, with the defaults filled in."""

from __future__ import annotations

from daemon.engine.execution.request import Request, SamplingParams
from daemon.engine.prompt.preparation import PreparedRequest
from mlx_sidecar.v1 import sidecar_pb2 as pb


def request_of(call_id: int, message: pb.GenerateRequest, model_name: str, ready: PreparedRequest) -> Request:
    """
    Return a request as scheduling and execution see it.

    Args:
        call_id: The call that it came with.
        message: The validated request.
        model_name: The name that its model was asked for by.
        ready: Its prompt and tokenizer.
    """
    stop, eos_ids = message.stop, ready.tokenizer.eos_ids
    return Request(
        call_id=call_id,
        request_id=message.request_id,
        model_name=model_name,
        prompt=ready.prompt.tokens,
        max_tokens=ready.prompt.max_tokens,
        sampling=sampling_params(message.sampling),
        stop_ids=frozenset(stop.token_ids) | (frozenset() if stop.ignore_eos else eos_ids),
        message_ends=eos_ids,
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
        priority=message.priority,
        warnings=ready.prompt.warnings,
    )


def sampling_params(sampling: pb.Sampling) -> SamplingParams:
    """Return validated sampling options; a field that is not set gets its default."""
    names = [name for name in SamplingParams.__slots__ if name != "logit_bias" and sampling.HasField(name)]
    given = {name: getattr(sampling, name) for name in names}
    return SamplingParams(**given, logit_bias=tuple(sorted(sampling.logit_bias.items())))
