"""Options of one request, two at a time: each does what it does alone, or the pair is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from daemon.server.generate_validation import check_generate
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import marked_model
from tests.unit.engine.harness import Answer, Harness

FIRST = 737
MARKS = {"<tool_call>": False, "<think>": True, "</think>": True}
TEMPLATE = "{# <tool_call> #}{{ '<think>\n' }}"
TALK = [pb.ChatMessage(role="user", content="Tell me all that you know of ships, and of the sea that carries them.")]
BUDGET = 4


@dataclass(frozen=True, slots=True)
class Option:
    """
    An option of a request.

    Attributes:
        fields: Its fields.
        holds: Whether an answer shows that the option had its effect; also given the engine.
    """

    fields: dict[str, Any]
    holds: Callable[[Answer, Harness], bool]


def ends(answer: Answer) -> list[pb.Finished]:
    """Return the end of each sample."""
    return [event.generate.finished for event in answer.events if event.generate.HasField("finished")]


def scores(answer: Answer) -> int:
    """Return the number of scored tokens of the prompt."""
    return sum(len(event.generate.prompt_logprobs.logprobs) for event in answer.events)


def texts(answer: Answer) -> dict[int, str]:
    """Return the text of each sample."""
    deltas = [event.generate.delta for event in answer.events if event.generate.HasField("delta")]
    return {index: "".join(d.text for d in deltas if d.index == index) for index in {d.index for d in deltas}}


def has_calls(answer: Answer) -> bool:
    """Whether each sample makes calls."""
    deltas = [event.generate.delta for event in answer.events if event.generate.HasField("delta")]
    return {d.index for d in deltas if d.tool_calls} == {end.index for end in ends(answer)}


OPTIONS = {
    "reasoning_budget": Option(
        {"reasoning_budget": BUDGET},
        lambda answer, _: {end.usage.reasoning_tokens for end in ends(answer)} == {BUDGET + 1},
    ),
    "samples": Option({"samples": 2}, lambda answer, _: sorted(end.index for end in ends(answer)) == [0, 1]),
    "prompt_logprobs": Option(
        {"prompt_logprobs": 1}, lambda answer, _: scores(answer) == answer.started.prompt_tokens - 1
    ),
    "cache": Option(
        {"cache": pb.CacheOptions(keep=Duration(seconds=60))},
        lambda _, harness: harness.figures.prefix_cache.total_kept == 1,
    ),
    "response_format": Option(
        {"response_format": pb.ResponseFormat(regex="[0-9]{3}")},
        lambda answer, _: all(len(text) == 3 and text.isdecimal() for text in texts(answer).values()),
    ),
    "tools": Option({"tools": [pb.Tool(name="go_home")]}, lambda answer, _: has_calls(answer)),
}
REFUSED = {("response_format", "tools"): "chat.tools"}
"""Pairs that cannot go together, and the field that the refusal names."""
BIAS = {FIRST: 60.0, FIRST + 1: -100.0, 2: -100.0}
"""Calls are likely; reasoning is never begun anew, and the answer goes on."""


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that reasons, and calls tools."""
    return marked_model(tmp_path_factory.mktemp("models"), MARKS, TEMPLATE)


def request(model: Path, names: tuple[str, ...]) -> pb.GenerateRequest:
    """Return a request with some options; reasoning ends by itself soon unless it has a budget."""
    fields = {name: value for option in names for name, value in OPTIONS[option].fields.items()}
    never = {FIRST + 2: -100.0 if "reasoning_budget" in names else 60.0}
    return pb.GenerateRequest(
        model=str(model),
        chat=pb.Chat(messages=TALK, tools=fields.pop("tools", [])),
        sampling=pb.Sampling(temperature=2.0, seed=3, logit_bias={**BIAS, **never} if "tools" in names else never),
        max_tokens=60,
        **fields,
    )


@pytest.mark.parametrize("pair", [*combinations(OPTIONS, 2)], ids="-".join)
def test_two_options_hold_together(harness: Harness, model: Path, pair: tuple[str, str]) -> None:
    wanted = request(model, pair)
    if pair in REFUSED:
        with pytest.raises(SidecarError) as refused:
            check_generate(wanted)
        assert (refused.value.reason, refused.value.field) == (Reason.INVALID_ARGUMENT, REFUSED[pair])
        return
    check_generate(wanted)
    answer = harness.run(wanted)
    assert ends(answer), answer.failure
    assert [name for name in pair if not OPTIONS[name].holds(answer, harness)] == []
    harness.settle()


NO_ANSWER = {"reasoning_budget": "reasoning_budget", "samples": "samples", "response_format": "response_format"}
"""Options that have no effect without an answer, and the field that the refusal names."""


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "tools"])
def test_scored_prompt_refuses_answer_options(harness: Harness, model: Path, name: str) -> None:
    """`max_tokens` 0: what is left without effect is refused, and the rest works."""
    wanted = request(model, tuple({name: 0, "prompt_logprobs": 0}))
    wanted.max_tokens = 0
    wanted.ClearField("sampling")
    if name in NO_ANSWER:
        with pytest.raises(SidecarError) as refused:
            check_generate(wanted)
        assert refused.value.field == NO_ANSWER[name]
        return
    check_generate(wanted)
    answer = harness.run(wanted)
    assert [end.usage.completion_tokens for end in ends(answer)] == [0], answer.failure
    assert OPTIONS[name].holds(answer, harness)


def test_continued_answer_has_no_budget(model: Path) -> None:
    wanted = request(model, ("reasoning_budget",))
    wanted.chat.messages.add(role="assistant", content="They are")
    wanted.chat.continue_final_message = True
    with pytest.raises(SidecarError) as refused:
        check_generate(wanted)
    assert refused.value.field == "reasoning_budget"
