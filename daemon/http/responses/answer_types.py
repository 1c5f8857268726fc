"""OpenAI's responses: the types of answers, of their items and of the events of a stream."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel

from daemon.http.openai.errors import ErrorDetail
from daemon.http.openai.logprobs import Score

Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed"]


class TextPart(BaseModel):
    """Text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Score]


class ReasoningText(BaseModel):
    """Text of a reasoning, as content or as summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class Message(BaseModel):
    """A message of an answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[TextPart]


class Reasoning(BaseModel):
    """A reasoning."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[ReasoningText]
    content: list[ReasoningText]
    encrypted_content: str | None = None


class FunctionCall(BaseModel):
    """A call of a function."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str
    encrypted_function_args: list[str] | None = None


class CustomCall(BaseModel):
    """A call of a custom tool."""

    id: str
    type: Literal["custom_tool_call"]
    status: Status
    call_id: str
    name: str
    namespace: str | None = None
    input: str


OutputItem: TypeAlias = Message | Reasoning | FunctionCall | CustomCall


class InputDetails(BaseModel):
    """What the tokens of a prompt were. All that was not cached before is cached then."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(BaseModel):
    """What the tokens of an answer were."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens counted."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Failure(BaseModel):
    """What went wrong."""

    code: str
    message: str


class Incomplete(BaseModel):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"]


class ReasoningSettings(BaseModel):
    """How the model reasoned: null is as its template has it."""

    effort: str | None
    summary: str | None


class Response(BaseModel):
    """An answer, with what was asked."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: Literal[False]
    error: Failure | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningSettings
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    usage: Usage | None


class Event(BaseModel):
    """An event of a stream; each type has some of the fields."""

    type: str
    sequence_number: int
    response: Response | None = None
    output_index: int | None = None
    item: OutputItem | None = None
    item_id: str | None = None
    content_index: int | None = None
    summary_index: int | None = None
    part: TextPart | ReasoningText | None = None
    delta: str | None = None
    text: str | None = None
    arguments: str | None = None
    input: str | None = None
    logprobs: list[Score] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
    error: ErrorDetail | None = None


class Count(BaseModel):
    """The tokens of a prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class Deleted(BaseModel):
    """An answer that is kept no more."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(BaseModel):
    """A page of items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
