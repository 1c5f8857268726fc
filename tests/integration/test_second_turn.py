"""The second turn of an agent reuses all that its model wrote in the first: reasoning, text and call."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_sidecar import Client, Message, Tool
from tests.corpus.families import SMALL
from tests.support.scripted_model import scripted_model

BLOCK = 16
TURN = "<|im_end|>\n<|im_start|>assistant\n"
FIRST = [
    "<think>\nHm", *[f" w{number:02}" for number in range(30)], "\n</think>\n\n", "I look", ".\n<tool_call>\n",
    '{"name": "weather", "arguments": ', '{"city": "Bergen", "days": 2}}', "\n</tool_call>",
]  # fmt: skip
WEATHER = Tool(
    "weather", "The weather", {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number"}}}
)


def test_second_turn_reuses_all_that_the_model_wrote(client: Client, tmp_path: Path) -> None:
    """The last token of the answer is computed after the answer, and whole blocks are reused."""
    (template,) = [file for file in SMALL if file.stem == "Qwen-Qwen3-0.6B"]
    answers = {f"Does it rain?{TURN}": FIRST, f"dry\n</tool_response>{TURN}": ["No", " rain."]}
    model = str(scripted_model(tmp_path / "turns", answers, template.read_text()))
    history = [Message("user", "Does it rain?")]
    asked = client.complete(model, history, tools=[WEATHER])
    assert (asked.reason, len(asked.tool_calls), asked.text) == ("tool_calls", 1, "\n\nI look.\n")
    assert len(asked.token_ids) == len(FIRST)

    history.append(asked.message)
    history.append(Message("tool", "dry", tool_call_id=asked.tool_calls[0].id))
    told = client.complete(model, history, tools=[WEATHER])
    assert told.text == "No rain."
    written = asked.usage.prompt_tokens + asked.usage.completion_tokens
    assert told.usage.cached_tokens >= (written - 1) // BLOCK * BLOCK
    cold = client.complete(model, history, tools=[WEATHER], salt="cold")
    assert (cold.text, cold.usage.cached_tokens) == (told.text, 0)


NAMED = [
    "<think>",
    "\nCalls are written in ",
    "<tool_call>",
    " tags. None is needed here.\n",
    "</think>",
    "\n\nThe answer is 4.",
]
"""Its reasoning names the mark of a call."""


def test_reasoning_that_names_a_mark_is_reasoning(client: Client, tmp_path: Path) -> None:
    """With tools, without them, and before an answer in a form, which holds nothing of it."""
    (template,) = [file for file in SMALL if file.stem == "Qwen-Qwen3-0.6B"]
    model = str(scripted_model(tmp_path / "named", {f"2 + 2?{TURN}": NAMED}, template.read_text()))
    chat = [Message("user", "2 + 2?")]
    for tools in ([WEATHER], []):
        answer = client.complete(model, chat, tools=tools)
        assert (answer.reasoning, answer.text, answer.tool_calls) == ("".join(NAMED[1:4]), NAMED[5], ())
    answer = client.complete(model, chat, json_schema={"const": {"a": 4}}, max_tokens=200)
    assert (answer.reasoning, json.loads(answer.text)) == ("".join(NAMED[1:4]), {"a": 4})
