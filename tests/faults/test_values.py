"""Rows 19 to 36 of the fault table: values of request fields. `test_hostile_text.py` has the texts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.faults.raw import call
from tests.support.daemons import RunningDaemon

INVALID = "INVALID_ARGUMENT"


def generate(**fields: Any) -> pb.GenerateRequest:
    """Return a request to the embedded model."""
    return pb.GenerateRequest(**{"model": "embedded", "text": "The", "max_tokens": 2, **fields})


def sampling(**fields: Any) -> pb.GenerateRequest:
    """Return a request with sampling options."""
    return generate(sampling=pb.Sampling(**fields))


def tokens(*ids: int) -> pb.GenerateRequest:
    """Return a request with a prompt of ids."""
    return pb.GenerateRequest(model="embedded", tokens=pb.TokenIds(ids=ids))


ROWS: list[tuple[int, pb.GenerateRequest, str, str]] = [
    (19, generate(text=""), INVALID, "text"),
    (19, generate(chat=pb.Chat(), text=None), INVALID, "chat.messages"),
    (19, tokens(2), "OK", ""),
    (20, generate(max_tokens=0), INVALID, "max_tokens"),
    (20, generate(max_tokens=-1), INVALID, "max_tokens"),
    (20, generate(max_tokens=2**31 - 1), INVALID, "max_tokens"),
    (21, tokens(*[7] * 4096), INVALID, "tokens"),
    (23, generate(top_logprobs=10**9), INVALID, "top_logprobs"),
    (23, generate(top_logprobs=-1), INVALID, "top_logprobs"),
    *[(24, sampling(temperature=bad), INVALID, "sampling.temperature") for bad in (math.nan, math.inf, -math.inf, -1)],
    (24, sampling(temperature=3e38), INVALID, "sampling.temperature"),
    (24, sampling(temperature=1e-45), "OK", ""),
    *[(24, sampling(top_p=bad), INVALID, "sampling.top_p") for bad in (-1, 0, 2, math.nan)],
    (24, sampling(repetition_penalty=0), INVALID, "sampling.repetition_penalty"),
    (25, tokens(2**32 - 1), INVALID, "tokens.ids[0]"),
    (25, tokens(1, 737), INVALID, "tokens.ids[1]"),
    (25, tokens(*[1] * 1_000_001), INVALID, "tokens.ids"),
    (26, sampling(logit_bias=dict.fromkeys(range(1025), 1.0)), INVALID, "sampling.logit_bias"),
    (26, sampling(logit_bias=dict.fromkeys(range(100_000), 1.0)), INVALID, "request"),
    (26, sampling(logit_bias={10**6: 1.0}), INVALID, "sampling.logit_bias[1000000]"),
    (26, sampling(logit_bias={1: math.nan}), INVALID, "sampling.logit_bias[1]"),
    (27, generate(stop=pb.Stop(strings=["x"] * 100_000)), INVALID, "request"),
    (27, generate(stop=pb.Stop(strings=["x"] * 17)), INVALID, "stop.strings"),
    (27, generate(stop=pb.Stop(strings=["a", ""])), INVALID, "stop.strings[1]"),
    (27, generate(stop=pb.Stop(strings=["x" * 1_000_000])), INVALID, "stop.strings[0]"),
    (28, sampling(seed=0, temperature=1), "OK", ""),
    (28, sampling(seed=2**64 - 1, temperature=1), "OK", ""),
    (34, generate(cache=pb.CacheOptions(mode=99)), INVALID, "cache.mode"),  # type: ignore[arg-type]
    (36, generate(cache=pb.CacheOptions(salt="")), "OK", ""),
    (36, generate(cache=pb.CacheOptions(salt="\0\x7f\u202e")), "OK", ""),
    (36, generate(cache=pb.CacheOptions(salt="x" * 129)), INVALID, "cache.salt"),
    (36, generate(cache=pb.CacheOptions(salt="x" * 5_000_000)), INVALID, "cache.salt"),
]


@pytest.mark.parametrize(("row", "request_", "code", "field"), ROWS, ids=[f"{row[0]}-{row[3]}" for row in ROWS])
def test_boundary_value_passes_or_names_its_field(
    real: RunningDaemon, row: int, request_: pb.GenerateRequest, code: str, field: str
) -> None:
    """With the status of the table, and the same engine afterwards."""
    assert call(real, "Generate", request_.SerializeToString()).code_and_field == (code, field), row


@pytest.mark.parametrize("name", ["n", "best_of", "chat_template", "chat_template_kwargs", "offset"])
def test_unsupported_vendor_options_are_not_offered(name: str) -> None:
    """Rows 22, 29, 34 and 35: a number of answers, templates and free-form options of the caller, offsets."""
    messages = [value for value in vars(pb).values() if isinstance(value, type) and hasattr(value, "DESCRIPTOR")]
    assert len(messages) > 30
    assert not [message for message in messages if name in message.DESCRIPTOR.fields_by_name]
