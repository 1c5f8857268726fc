"""The second turn of an agent reuses all that its model wrote in the first: reasoning, text and call."""

from __future__ import annotations

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

    history.append(Message("assistant", asked.text, reasoning_content=asked.reasoning, tool_calls=asked.tool_calls))
    history.append(Message("tool", "dry", tool_call_id=asked.tool_calls[0].id))
    told = client.complete(model, history, tools=[WEATHER])
    assert told.text == "No rain."
    written = asked.usage.prompt_tokens + asked.usage.completion_tokens
    assert told.usage.cached_tokens >= (written - 1) // BLOCK * BLOCK
    cold = client.complete(model, history, tools=[WEATHER], salt="cold")
    assert (cold.text, cold.usage.cached_tokens) == (told.text, 0)
