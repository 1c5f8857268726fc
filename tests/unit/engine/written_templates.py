"""A model with templates that a test writes, and the messages that such tests render with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.cache.identity import ModelSource
from daemon.cache.resolver import Resolver, Wanted
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.preparation import Rendered, render
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.prompt.tokenizers import Tokenizers
from daemon.shared.errors import Reason, SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.support.models import copy_of_embedded

CALL = pb.ToolCall(id="call_7f3a", name="look", arguments_json='{"at": "sea"}')
CALLED = pb.ChatMessage(role="assistant", tool_calls=[CALL])
ANSWERED = pb.ChatMessage(role="tool", content="blue", tool_call_id="call_7f3a")
TOOL = pb.Tool(name="look", parameters_json='{"type": "object"}')


def says(role: str, content: str = "", **fields: Any) -> pb.ChatMessage:
    """Return a message."""
    return pb.ChatMessage(role=role, content=content, **fields)


HI = says("user", "Hi")


class Model:
    """A model whose templates a test writes."""

    def __init__(self, path: Path, templates: Templates) -> None:
        self.path = path
        self._tokenizers = Tokenizers(templates)
        (path / "chat_template.jinja").unlink()

    def write(self, files: dict[str, Any]) -> Model:
        """Write files; what is no text is written as JSON, into a file that may be there."""
        for name, content in files.items():
            file = self.path / name
            file.parent.mkdir(exist_ok=True)
            if not isinstance(content, str):
                content = json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **content})
            file.write_text(content)
        return self

    def has(self, template: str) -> Model:
        """Give it one template."""
        return self.write({"chat_template.jinja": template})

    @property
    def source(self) -> ModelSource:
        """The model, as the resolver finds it."""
        return Resolver([]).resolve(Wanted(str(self.path)))

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self._tokenizers.get(self.source)

    def render(self, *messages: pb.ChatMessage, **fields: Any) -> Rendered:
        """Return a conversation as its template writes it."""
        return render(pb.GenerateRequest(chat=pb.Chat(messages=messages, **fields)), self.tokenizer)

    def text(self, *messages: pb.ChatMessage, **fields: Any) -> str:
        """Return a conversation as text, without the beginning of an answer."""
        return self.render(*messages, **{"add_generation_prompt": False, **fields}).text

    def refusal(self, *messages: pb.ChatMessage, **fields: Any) -> str:
        """Return the field that a conversation is refused for."""
        with pytest.raises(SidecarError) as caught:
            self.render(*messages, **fields)
        assert caught.value.reason is Reason.INVALID_ARGUMENT
        return str(caught.value.field)


@pytest.fixture(name="model")
def _model(tmp_path: Path, templates: Templates) -> Model:
    """Return a model without a template."""
    return Model(copy_of_embedded(tmp_path, "model"), templates)
