"""Validation: a wrong request is refused with the name of its field."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from daemon.shared.errors import SidecarError
from daemon.shared.sampling_options import RANGES
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.server.requests import (
    CHECKS,
    chat,
    chat_in_a_form,
    embed,
    form,
    generate,
    load,
    must_call,
    prefix,
    refused,
    sampling,
)

CALLABLE = pb.Chat(messages=[pb.ChatMessage(role="user")], tools=[pb.Tool(name="t")])
BESIDE_TOOLS: dict[str, Any] = {
    "text": None,
    "chat": CALLABLE,
    "response_format": pb.ResponseFormat(json_object=pb.JsonObject()),
}
"""An answer that is calls or JSON."""

GOOD = [
    load(),
    load(revision="main", adapter="/a", pin=True, ttl={"seconds": 0}),
    load(context_length=2),
    load(context_length=2**31 - 1),
    load(ttl={"seconds": 315_576_000_000, "nanos": 999_999_999}),
    load(model="m" * 1024),
    load(estimate_only=True, skip_warmup=True),
    generate(max_tokens=1, top_logprobs=0, request_id="a" * 128),
    generate(cache={"keep": Duration(nanos=1)}),
    generate(cache={"keep": Duration(seconds=86_400), "mode": pb.CACHE_MODE_READ_WRITE}),
    generate(max_tokens=2**31 - 1, top_logprobs=20, cache={"mode": pb.CACHE_MODE_BYPASS, "salt": "s" * 128}),
    sampling(temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1e-45),
    sampling(temperature=1e-45, top_p=1e-45, top_k=1, min_p=1, seed=0),
    sampling(model_defaults=True, top_p=0.5, top_k=1, min_p=1, seed=0),
    generate(samples=1),
    generate(samples=16, sampling=pb.Sampling(temperature=1)),
    generate(samples=16, sampling=pb.Sampling(model_defaults=True)),
    generate(prompt_logprobs=20, max_tokens=1),
    generate(prompt_logprobs=0, max_tokens=0),
    generate(prompt_logprobs=0, max_tokens=0, sampling=pb.Sampling(temperature=0, top_p=1, repetition_penalty=1)),
    sampling(temperature=100, top_p=1, top_k=2**31 - 1, min_p=1, repetition_penalty=10, seed=2**64 - 1),
    sampling(presence_penalty=-10, frequency_penalty=10, logit_bias={7: -100, 8: 100}),
    sampling(logit_bias=dict.fromkeys(range(1024), 0.0)),
    generate(stop=pb.Stop(strings=["x" * 256] * 16, token_ids=[1] * 64)),
    generate(stop=pb.Stop(strings=["é" * 128])),
    chat(tools=[pb.Tool(name="t"), pb.Tool(name="u")]),
    chat(template_args={f"name_{number}": "1" for number in range(64)}, reasoning_effort="x" * 64),
    chat(messages=[pb.ChatMessage(role="assistant")], continue_final_message=True, add_generation_prompt=False),
    chat(tools=[pb.Tool(name="t", parameters_json="x" * 65_537)], tool_choice=pb.TOOL_CHOICE_AUTO),
    chat(tools=[pb.Tool(name="t", parameters_json="x" * 65_536)], tool_choice=pb.TOOL_CHOICE_REQUIRED),
    chat_in_a_form(tools=[pb.Tool(name="t")], tool_choice=pb.TOOL_CHOICE_NONE),
    generate(**BESIDE_TOOLS),
    must_call(),
    must_call(chat=pb.Chat(required_tool="t")),
    must_call(chat=pb.Chat(allowed_tools=["t"])),
    chat(tools=[pb.Tool(name="t"), pb.Tool(name="u")], allowed_tools=["u"]),
    form(json_schema="x" * 65_536),
    form(json_object=pb.JsonObject()),
    form(regex="x" * 8192),
    form(grammar="x" * 65_536),
    pb.GenerateRequest(model="m", tokens=pb.TokenIds(ids=[2**32 - 1])),
    prefix(salt="s" * 128),
    prefix(tokens=pb.TokenIds(ids=[1])),
    pb.InvalidateRequest(model=pb.ModelTarget(model="m", weights=True), dry_run=True),
    pb.InvalidateRequest(all=pb.AllTarget(prefixes=True)),
    pb.TokenizeRequest(model="m", text="", count_only=True),
    pb.TokenizeRequest(model="m", tokens=pb.TokenIds()),
    pb.TokenizeRequest(model="m", chat=pb.Chat(messages=[pb.ChatMessage(role="user")])),
    pb.ListModelsRequest(),
    embed(texts=["a"] * 256, prompt="x" * 65_536, dimensions=1, priority=-2, normalize=False),
    embed(prompt_name="query", pooling=pb.POOLING_CLS, cache={"mode": pb.CACHE_MODE_READ_ONLY, "salt": "s"}),
]

LEFT_OPEN: dict[str, Any] = {"messages": [pb.ChatMessage(role="assistant")], "continue_final_message": True}
LARGE = pb.Tool(name="t", parameters_json="x" * 65_537)
CALLED = [pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="t")])]

BAD: list[tuple[str, Message]] = [
    ("model", load(model="")),
    ("model", load(model="m" * 1025)),
    ("model", generate(model="é" * 513)),
    ("revision", load(revision="r" * 1025)),
    ("adapter", load(adapter="a" * 1025)),
    ("adapter", generate(adapter="a" * 1025)),
    ("ttl", load(ttl={"seconds": -1})),
    ("ttl", load(ttl={"nanos": -1})),
    ("ttl", load(ttl={"seconds": 2, "nanos": -1})),
    ("ttl", load(ttl={"nanos": 1_000_000_000})),
    ("ttl", load(ttl={"seconds": 315_576_000_001})),
    ("ttl", load(ttl={"seconds": 2**63 - 1})),
    ("ttl", load(ttl={"seconds": 1}, estimate_only=True)),
    ("pin", load(pin=False, estimate_only=True)),
    ("context_length", load(context_length=4096, estimate_only=True)),
    ("update", load(update=True)),
    ("context_length", load(context_length=1)),
    ("context_length", load(context_length=0)),
    ("context_length", load(context_length=-4096)),
    ("prompt", pb.GenerateRequest(model="m")),
    ("text", generate(text="")),
    ("tokens.ids", pb.GenerateRequest(model="m", tokens=pb.TokenIds())),
    ("chat.messages", chat(messages=[])),
    ("chat.messages", chat(messages=[pb.ChatMessage(role="user")] * 10_001)),
    ("chat.messages[1].role", chat(messages=[pb.ChatMessage(role="user"), pb.ChatMessage()])),
    ("chat.tools[0].name", chat(tools=[pb.Tool()])),
    ("chat.tools[2].name", chat(tools=[pb.Tool(name="t"), pb.Tool(name="u"), pb.Tool(name="t")])),
    ("chat.template_args", chat(template_args={f"name_{number}": "1" for number in range(65)})),
    ("chat.template_args", chat(template_args={"a": "x" * 64 * 1024})),
    ("chat.template_args[messages]", chat(template_args={"messages": "[]"})),
    ("chat.template_args[enable_thinking]", chat(template_args={"enable_thinking": "true"})),
    ("chat.template_args[bos_token]", chat(template_args={"bos_token": '"x"'})),
    ("chat.template_args[chat_template]", chat(template_args={"chat_template": '"x"'})),
    ("chat.template_args[]", chat(template_args={"": "1"})),
    ("chat.reasoning_effort", chat(reasoning_effort="x" * 65)),
    ("chat.continue_final_message", chat(continue_final_message=True)),
    ("chat.continue_final_message", chat(**LEFT_OPEN, add_generation_prompt=True)),
    ("chat.continue_final_message", chat(continue_final_message=True, messages=CALLED)),
    ("chat.tools", chat_in_a_form(tools=[pb.Tool(name="t")])),
    ("response_format", must_call(response_format=pb.ResponseFormat(json_schema="{}"))),
    (
        "chat.tools[0].parameters_json",
        generate(**BESIDE_TOOLS | {"chat": pb.Chat(messages=CALLABLE.messages, tools=[LARGE])}),
    ),
    ("chat.tool_choice", chat(tool_choice=9)),
    ("chat.tool_choice", chat(tool_choice=pb.TOOL_CHOICE_REQUIRED)),
    ("chat.required_tool", chat(tools=[pb.Tool(name="t")], required_tool="t")),
    ("chat.required_tool", chat(tools=[pb.Tool(name="t")], required_tool="u", tool_choice=pb.TOOL_CHOICE_REQUIRED)),
    ("chat.allowed_tools[1]", chat(tools=[pb.Tool(name="t")], allowed_tools=["t", "u"])),
    ("chat.allowed_tools", chat(tools=[pb.Tool(name="t")], allowed_tools=["t"], tool_choice=pb.TOOL_CHOICE_NONE)),
    ("chat.allowed_tools", must_call(chat=pb.Chat(allowed_tools=["t"], required_tool="t"))),
    (
        "chat.tools[0].parameters_json",
        chat(tools=[pb.Tool(name="t", parameters_json="x" * 65_537)], tool_choice=pb.TOOL_CHOICE_REQUIRED),
    ),
    (
        "chat.tools",
        chat(
            tools=[pb.Tool(name=f"t{number}", parameters_json="x" * 60_000) for number in range(5)],
            tool_choice=pb.TOOL_CHOICE_REQUIRED,
        ),
    ),
    ("stop.ignore_eos", must_call(stop=pb.Stop(ignore_eos=True))),
    ("stop.ignore_eos", generate(response_format=pb.ResponseFormat(regex="a"), stop=pb.Stop(ignore_eos=True))),
    ("response_format", form()),
    ("response_format.json_schema", form(json_schema="")),
    ("response_format.json_schema", form(json_schema="x" * 65_537)),
    ("response_format.regex", form(regex="")),
    ("response_format.regex", form(regex="é" * 4097)),
    ("response_format.grammar", form(grammar="x" * 65_537)),
    ("max_tokens", generate(max_tokens=0)),
    ("max_tokens", generate(max_tokens=-1)),
    ("sampling.temperature", sampling(temperature=100.001)),
    ("sampling.temperature", sampling(temperature=-1e-45)),
    ("sampling.top_p", sampling(top_p=0)),
    ("sampling.top_p", sampling(top_p=0.5)),
    ("sampling.top_k", sampling(temperature=0, top_k=1)),
    ("sampling.min_p", sampling(temperature=0, model_defaults=True, min_p=0.1)),
    ("sampling.seed", sampling(seed=0)),
    ("samples", generate(samples=0, sampling=pb.Sampling(temperature=1))),
    ("samples", generate(samples=17, sampling=pb.Sampling(temperature=1))),
    ("samples", generate(samples=2)),
    ("draft_model", generate(samples=2, draft_model="m", sampling=pb.Sampling(temperature=1))),
    ("draft_model", generate(prompt_logprobs=0, draft_model="m")),
    ("speculation", generate(speculation=6)),
    ("speculation", generate(speculation=pb.SPECULATION_DRAFT)),
    ("speculation", generate(speculation=pb.SPECULATION_MTP, draft_model="b")),
    ("speculation", generate(speculation=pb.SPECULATION_MTP, samples=2, sampling=pb.Sampling(temperature=1))),
    ("speculation", generate(speculation=pb.SPECULATION_OFF, draft_model="m")),
    ("speculation", generate(speculation=pb.SPECULATION_NGRAM, draft_model="m")),
    ("speculation", generate(speculation=pb.SPECULATION_NGRAM, prompt_logprobs=0, max_tokens=0)),
    ("prompt_logprobs", generate(prompt_logprobs=21)),
    ("prompt_logprobs", generate(prompt_logprobs=-1)),
    ("max_tokens", generate(prompt_logprobs=0, max_tokens=-1)),
    ("samples", generate(prompt_logprobs=0, max_tokens=0, samples=1)),
    ("top_logprobs", generate(prompt_logprobs=0, max_tokens=0, top_logprobs=0)),
    ("response_format", generate(prompt_logprobs=0, max_tokens=0, response_format=pb.ResponseFormat(regex="a"))),
    ("sampling.temperature", generate(prompt_logprobs=0, max_tokens=0, sampling=pb.Sampling(temperature=1))),
    ("sampling.model_defaults", generate(prompt_logprobs=0, max_tokens=0, sampling=pb.Sampling(model_defaults=True))),
    ("stop.strings", generate(prompt_logprobs=0, max_tokens=0, stop=pb.Stop(strings=["x"]))),
    ("chat.tool_choice", must_call(prompt_logprobs=0, max_tokens=0)),
    ("sampling.top_p", sampling(top_p=1.0000002)),
    ("sampling.top_k", sampling(top_k=-1)),
    ("sampling.min_p", sampling(min_p=1.0000002)),
    ("sampling.repetition_penalty", sampling(repetition_penalty=0)),
    ("sampling.repetition_penalty", sampling(repetition_penalty=10.00001)),
    ("sampling.presence_penalty", sampling(presence_penalty=-10.00001)),
    ("sampling.frequency_penalty", sampling(frequency_penalty=10.00001)),
    ("sampling.logit_bias[7]", sampling(logit_bias={7: 100.01})),
    ("sampling.logit_bias[7]", sampling(logit_bias={7: math.nan})),
    ("sampling.logit_bias", sampling(logit_bias=dict.fromkeys(range(1025), 0.0))),
    ("stop.strings", generate(stop=pb.Stop(strings=["x"] * 17))),
    ("stop.strings[1]", generate(stop=pb.Stop(strings=["x", ""]))),
    ("stop.strings[0]", generate(stop=pb.Stop(strings=["x" * 257]))),
    ("stop.strings[0]", generate(stop=pb.Stop(strings=["é" * 129]))),
    ("stop.token_ids", generate(stop=pb.Stop(token_ids=[1] * 65))),
    ("top_logprobs", generate(top_logprobs=21)),
    ("top_logprobs", generate(top_logprobs=-1)),
    ("cache.mode", generate(cache={"mode": 4})),
    ("cache.salt", generate(cache={"salt": "s" * 129})),
    ("cache.keep", generate(cache={"keep": Duration()})),
    ("cache.keep", generate(cache={"keep": Duration(seconds=-1)})),
    ("cache.keep", generate(cache={"keep": Duration(seconds=86_400, nanos=1)})),
    ("cache.keep", generate(cache={"keep": Duration(seconds=1), "mode": pb.CACHE_MODE_READ_ONLY})),
    ("cache.keep", generate(cache={"keep": Duration(seconds=1), "mode": pb.CACHE_MODE_BYPASS})),
    ("request_id", generate(request_id="a" * 129)),
    ("request_id", generate(request_id="a b")),
    ("request_id", generate(request_id="\n")),
    ("request_id", generate(request_id="é")),
    ("target", pb.InvalidateRequest()),
    ("model.model", pb.InvalidateRequest(model=pb.ModelTarget(weights=True))),
    ("model", pb.InvalidateRequest(model=pb.ModelTarget(model="m"))),
    ("all", pb.InvalidateRequest(all=pb.AllTarget())),
    ("prefix.model", prefix(model="")),
    ("prefix.input", prefix(text="")),
    ("prefix.input", pb.InvalidateRequest(prefix=pb.PrefixTarget(model="m"))),
    ("prefix.salt", prefix(salt="s" * 129)),
    ("request", generate(text="x" * (8 * 1024 * 1024))),
    ("model", pb.TokenizeRequest(text="a")),
    ("input", pb.TokenizeRequest(model="m")),
    ("chat.messages", pb.TokenizeRequest(model="m", chat=pb.Chat())),
    ("texts", embed(texts=[])),
    ("texts", embed(texts=["a"] * 257)),
    ("prompt", embed(prompt="x" * 65_537)),
    ("prompt_name", embed(prompt="", prompt_name="query")),
    ("dimensions", embed(dimensions=0)),
    ("pooling", embed(pooling=9)),
    ("cache.mode", embed(cache={"mode": 4})),
    ("cache.salt", embed(cache={"salt": "s" * 129})),
    ("request_id", embed(request_id="a b")),
    ("priority", embed(priority=3)),
]


@pytest.mark.parametrize("request_", GOOD, ids=lambda request: re.sub(r"\s+", " ", str(request))[:60])
def test_request_at_its_limits_passes(request_: Message) -> None:
    """Every bound is one of the values that it allows."""
    assert refused(request_) is None


@pytest.mark.parametrize(("field", "request_"), BAD, ids=[f"{number}-{field}" for number, (field, _) in enumerate(BAD)])
def test_request_beyond_a_limit_names_its_field(field: str, request_: Message) -> None:
    """By one step."""
    assert refused(request_) == field


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in RANGES if name != "top_k"])
def test_nan_and_infinity_are_refused(name: str, value: float) -> None:
    """Everywhere."""
    assert refused(sampling(**{name: value})) == f"sampling.{name}"


@pytest.mark.parametrize(
    ("message", "values"),
    [
        (chat(tool_choice=9), "TOOL_CHOICE_AUTO (1), TOOL_CHOICE_NONE (2) or TOOL_CHOICE_REQUIRED (3)"),
        (generate(cache={"mode": 9}), "CACHE_MODE_READ_WRITE (1), CACHE_MODE_READ_ONLY (2) or CACHE_MODE_BYPASS (3)"),
        (embed(pooling=9), "POOLING_LAST_TOKEN (1), POOLING_MEAN (2) or POOLING_CLS (3)"),
        (
            generate(speculation=9),
            "SPECULATION_NGRAM (3), SPECULATION_DRAFT (4) or SPECULATION_MTP (5)",
        ),
    ],
)
def test_number_that_is_no_choice_is_told_with_those_that_are(message: Message, values: str) -> None:
    """With names and numbers, as languages have the one or the other."""
    with pytest.raises(SidecarError, match=f"is 9; it must be .*{re.escape(values)}, or unset"):
        CHECKS[type(message)](message)
