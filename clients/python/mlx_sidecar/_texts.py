"""Results of Tokenize and Embed, and the options that both clients share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from mlx_sidecar._decode import decode
from mlx_sidecar._exceptions import ProtocolError
from mlx_sidecar._messages import Tool
from mlx_sidecar._options import CacheMode, ToolChoice
from mlx_sidecar._results import Usage
from mlx_sidecar.v1 import sidecar_pb2 as pb

Pooling: TypeAlias = Literal["last_token", "mean", "cls"]
"""The state of the last token, the mean of all, or the state of the first token."""


class TokenizeOptions(TypedDict, total=False):
    """
    How to render a conversation; the same as for `generate`, and for chat prompts only.

    Attributes:
        tools: Functions that the model may call.
        add_generation_prompt: False does not open the assistant's turn. Default True.
        enable_thinking: Turns a reasoning model's thinking on or off. Default: as the template has it.
        tool_choice: "auto" (default), "none" or "required".
        required_tool: The tool that is called, with "required".
        allowed_tools: Names of the tools that may be called; the prompt has all of them.
        template_args: Further variables that the model's chat template reads. Default: none.
        reasoning_effort: How much a reasoning model reasons, such as "low". Default: as the template has it.
        continue_final_message: True leaves the last message open, which is the assistant's. Default False.
    """

    tools: Sequence[Tool | Mapping[str, Any]]
    add_generation_prompt: bool | None
    enable_thinking: bool | None
    tool_choice: ToolChoice | None
    required_tool: str
    allowed_tools: Sequence[str]
    template_args: Mapping[str, Any] | None
    reasoning_effort: str
    continue_final_message: bool


class EmbedOptions(TypedDict, total=False):
    """
    How texts become vectors. An option that is None, or not given, has the daemon's default.

    Attributes:
        adapter: Absolute directory of a LoRA adapter. Default: none.
        prompt_name: Which of the model's instructions is put before each text, such as "query". Default: as the model
            says.
        prompt: An instruction that is put before each text, instead.
        dimensions: Numbers of a vector: the first of the model's, normalised anew. Default: as the model says.
        normalize: Whether vectors get length 1. Default: as the model says.
        pooling: "last_token", "mean" or "cls". Default: as the model says; needed if it says nothing.
        cache_mode: "read_write" (default), "read_only" or "bypass".
        salt: Cached prefixes are shared only between requests with the same salt.
        request_id: Name of the request in the daemon's log. Default: one is made.
        require_loaded: True refuses a model that is not in memory instead of loading it. Default False.
        priority: -2 to 2; a waiting request of higher priority goes first. Default 0.
    """

    adapter: str
    prompt_name: str | None
    prompt: str | None
    dimensions: int | None
    normalize: bool | None
    pooling: Pooling | None
    cache_mode: CacheMode
    salt: str
    request_id: str
    require_loaded: bool
    priority: int | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """
    The other form of a prompt.

    Attributes:
        ids: The token ids; empty if only the count was asked for.
        count: Number of token ids.
        text: The text of given ids, or the rendered conversation; empty for text, and if only the count was asked for.
        context_length: Longest prompt plus completion of the model, in tokens; 0 when the model does not say.
        vocab_size: Number of token ids that the model has.
    """

    ids: tuple[int, ...]
    count: int
    text: str
    context_length: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class EmbedFinished:
    """
    The last event of an embedding.

    Attributes:
        model: The model.
        dimensions: Numbers of each vector.
        pooling: "last_token", "mean" or "cls".
        normalized: Whether vectors have length 1.
        usage: Tokens counted, over all texts.
        time: Seconds from arrival to the last vector.
    """

    model: str
    dimensions: int
    pooling: str
    normalized: bool
    usage: Usage
    time: float | None


@dataclass(frozen=True, slots=True)
class Embedding:
    """
    The vector of a text.

    Attributes:
        index: Position of its text, from 0.
        values: The vector.
    """

    index: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """
    The vectors of texts.

    Attributes:
        vectors: A vector for each text, in the order of the texts.
        model: The model.
        dimensions: Numbers of each vector.
        pooling: "last_token", "mean" or "cls".
        normalized: Whether vectors have length 1.
        usage: Tokens counted, over all texts.
        time: Seconds from arrival to the last vector.
    """

    vectors: tuple[tuple[float, ...], ...]
    model: str
    dimensions: int
    pooling: str
    normalized: bool
    usage: Usage
    time: float | None


class EmbedTranscript:
    """The transcript of an Embed."""

    def __init__(self) -> None:
        self._vectors: list[tuple[float, ...]] = []
        self._finished: EmbedFinished | None = None

    def add(self, message: pb.EmbedResponse) -> Embedding | None:
        """Return the vector of a text, and add it to the result."""
        match message.WhichOneof("event"):
            case "embedding":
                embedding = decode(Embedding, message.embedding)
                self._vectors.append(embedding.values)
                return embedding
            case "finished":
                self._finished = decode(EmbedFinished, message.finished)
        return None

    def result(self) -> Embeddings:
        """Return all vectors, see `Transcript.result`."""
        end = self._finished
        if end is None:
            raise ProtocolError("the embedding ended without `finished`")
        return Embeddings(
            tuple(self._vectors), end.model, end.dimensions, end.pooling, end.normalized, end.usage, end.time
        )
