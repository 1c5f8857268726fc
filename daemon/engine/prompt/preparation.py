"""Prepares a Generate request before its model is loaded: prompt, form, parser of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.cache.identity import ModelSource
from daemon.engine.output.answer_parser import AnswerParser
from daemon.engine.output.chat_markup import ChatMarkup, Thinking
from daemon.engine.output.detokenizer import Output
from daemon.engine.output.tool_calls import Tool
from daemon.engine.prompt.prompts import Prompt, offered_tools, prepare_prompt
from daemon.engine.prompt.tokenizers import Tokenizer
from daemon.engine.structured_output.grammar import ResponseFormat, of_response
from daemon.engine.structured_output.matcher import GrammarMatcher
from daemon.engine.structured_output.required_calls import required_calls
from daemon.engine.structured_output.token_mask import TokenMask
from mlx_sidecar.v1 import sidecar_pb2 as pb


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """
    A request that was checked against its model, with everything that generation needs except the weights.

    Attributes:
        source: The model.
        tokenizer: The model's tokenizer.
        prompt: The prompt.
        output: Turns generated ids into text.
        channels: Splits the answer into text, reasoning and calls; None if all of it is text, as after raw prompts.
        form: The form of the answer; None if it is free.
        thinking: How the answer begins with reasoning, to which the form does not apply; None if there is no reasoning.
        header: Ids that the answer begins with, before its form.
    """

    source: ModelSource
    tokenizer: Tokenizer
    prompt: Prompt
    output: Output
    channels: AnswerParser | None
    form: GrammarMatcher | None
    thinking: Thinking | None
    header: tuple[int, ...] = ()

    def constraint(self, vocab: int) -> TokenMask | None:
        """Return the mask of the tokens that may be sampled, for logits of width `vocab`. For the MLX thread only."""
        if self.form is None:
            return None
        return TokenMask(self.form, vocab, self.tokenizer.eos_ids, self.thinking, self.header)


def prepare_request(
    request: pb.GenerateRequest, source: ModelSource, tokenizer: Tokenizer, rendered: str | None = None
) -> PreparedRequest:
    """
    Check a request against its model and prepare it. Blocks, so it runs off the MLX thread.

    Args:
        request: The request.
        source: Its model.
        tokenizer: The model's tokenizer.
        rendered: The text of its conversation; None renders it here.

    Raises:
        SidecarError: INVALID_ARGUMENT if the prompt or the form cannot be used with this model;
            CONTEXT_LENGTH_EXCEEDED if prompt and completion do not fit its context.
    """
    prompt = prepare_prompt(request, source, tokenizer, rendered)
    notation = tokenizer.notation if request.HasField("chat") else None
    tools = offered_tools(request.chat)
    form = _form(request, tokenizer, notation, tools)
    stops = tuple(request.stop.strings)
    if notation is None:
        return PreparedRequest(source, tokenizer, prompt, Output(tokenizer.decode, stops), None, form, None)
    if not notation.call_start:  # the template gets the tools, but no mark tells a call from text
        tools = []
    wanted = request.chat.enable_thinking or not request.chat.HasField("enable_thinking")
    thinking = notation.thinking(prompt.tokens, wanted=wanted)
    answer = request.HasField("response_format")
    header = notation.answer_header(prompt.tokens) if answer else ()
    bare = answer and thinking is None and not header
    channels = AnswerParser(notation, tools, opened=notation.opened(prompt.tokens), bare=bare)
    output = Output(tokenizer.decoder(notation, calls=bool(tools)), stops)
    return PreparedRequest(source, tokenizer, prompt, output, channels, form, thinking, header)


def response_format(wanted: pb.ResponseFormat) -> ResponseFormat:
    """Return the response format of a request, which has one of its fields."""
    kind = wanted.WhichOneof("kind")
    assert kind is not None, "the server refuses a response format without a kind"
    return ResponseFormat(kind, "" if kind == "json_object" else getattr(wanted, kind))


def _form(
    request: pb.GenerateRequest, tokenizer: Tokenizer, notation: ChatMarkup | None, tools: Sequence[Tool]
) -> GrammarMatcher | None:
    """Return the form that the answer has to keep to; None if it is free."""
    if request.HasField("response_format"):
        wanted = response_format(request.response_format)
        return GrammarMatcher(wanted.field, of_response(wanted), tokenizer.vocabulary("response_format"))
    if request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
        return required_calls(tools, notation, tokenizer.vocabulary, request.chat.required_tool)
    return None
