"""White space that a template writes around reasoning and text is found, and is not sent to it a second time."""

from __future__ import annotations

import pytest

from daemon.engine.prompt.conversation import turns
from daemon.engine.prompt.template_shape import TemplateShape
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.corpus.families import SMALL
from tests.unit.engine.template_shapes import shape_of

GAPS = TemplateShape(before_reasoning="\n", after_reasoning="\n", before_text="\n\n", after_text="\n")


@pytest.mark.parametrize(
    ("reasoning", "content", "calls", "expected"),
    [
        ("\nHm\n", "\n\nI look.\n", True, ("Hm", "I look.")),
        ("\nHm\n", "\n\n\n", True, ("Hm", "")),
        ("Hm\n", "\n\n", True, ("Hm", "")),
        ("\n\nHm", "4\n", False, ("\nHm", "4\n")),
        ("\n\n", "4", False, ("\n\n", "4")),
        ("\n", "4", False, ("", "4")),
        ("", "\n\n4\n\n", True, ("", "\n\n4\n")),
    ],
)
def test_gaps_of_the_template_come_once(reasoning: str, content: str, calls: bool, expected: tuple[str, str]) -> None:
    """White space that the template writes itself is not sent to it; marks of empty reasoning need their gaps."""
    called = [pb.ToolCall(name="f", arguments_json="{}")] if calls else []
    message = pb.ChatMessage(role="assistant", content=content, reasoning_content=reasoning, tool_calls=called)
    (turn,) = turns([message], GAPS)
    assert (turn.get("reasoning_content", ""), turn["content"]) == expected


@pytest.mark.parametrize(
    ("name", "gaps"),
    [
        ("Qwen-Qwen3-0.6B", ("\n", "\n", "\n\n", "\n")),
        ("Qwen-Qwen2.5-7B-Instruct", ("", "", "", "\n")),
        ("ibm-granite-granite-4.0", ("", "", "", "\n")),
        ("mistralai-Mistral-Nemo-Instruct-2407", ("", "", "", "")),
    ],
)
def test_gaps_of_real_templates_are_found(name: str, gaps: tuple[str, ...]) -> None:
    (file,) = [file for file in SMALL if file.stem == name]
    shape = shape_of(file.read_text())
    assert (shape.before_reasoning, shape.after_reasoning, shape.before_text, shape.after_text) == gaps
