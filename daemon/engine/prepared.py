"""Prepared requests: a Generate request with all that can be made of it before its model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.cache.identity import ModelSource
from daemon.engine.channels import Channels
from daemon.engine.constraint import Constraint, Thinking
from daemon.engine.form import Form
from daemon.engine.grammar import of_response
from daemon.engine.notation import Notation
from daemon.engine.output import Output
from daemon.engine.prompts import Prompt, offered, prepare
from daemon.engine.required_calls import required_calls
from daemon.engine.tokenizers import Tokenizer
from mlx_sidecar.v1 import sidecar_pb2 as pb


@dataclass(frozen=True, slots=True)
class Prepared:
    """
    A request that fits its model.

    Attributes:
        source: The model.
        tokenizer: Its tokenizer.
        prompt: The ids of the prompt.
        output: Turns generated ids into text.
        channels: Takes the answer apart; None if all of it is text, as after raw prompts.
        form: The form of the answer; None if it is free.
        thinking: How the answer begins with reasoning, to which the form does not apply; None if it does not.
        header: Ids that the answer begins with, before its form.
    """

    source: ModelSource
    tokenizer: Tokenizer
    prompt: Prompt
    output: Output
    channels: Channels | None
    form: Form | None
    thinking: Thinking | None
    header: tuple[int, ...] = ()

    def constraint(self, vocab: int) -> Constraint | None:
        """Return which of `vocab` tokens may be sampled; on the MLX thread."""
        if self.form is None:
            return None
        return Constraint(self.form, vocab, self.tokenizer.eos_ids, self.thinking, self.header)


def prepared(
    request: pb.GenerateRequest, source: ModelSource, tokenizer: Tokenizer, rendered: str | None = None
) -> Prepared:
    """
    Check a request against its model and make what it needs; off the MLX thread.

    Args:
        request: The request.
        source: Its model.
        tokenizer: That of the model.
        rendered: The text of its conversation; None renders it here.

    Raises:
        SidecarError: INVALID_ARGUMENT or CONTEXT_LENGTH_EXCEEDED.
    """
    prompt = prepare(request, source, tokenizer, rendered)
    notation = tokenizer.notation if request.HasField("chat") else None
    form = _form(request, tokenizer, notation)
    stops = tuple(request.stop.strings)
    if notation is None:
        return Prepared(source, tokenizer, prompt, Output(tokenizer.decode, stops), None, form, None)
    tools = offered(request.chat) if notation.call_start else []
    wanted = request.chat.enable_thinking or not request.chat.HasField("enable_thinking")
    thinking = notation.thinking(prompt.tokens, wanted=wanted)
    answer = request.HasField("response_format")
    header = notation.answer_header(prompt.tokens) if answer else ()
    bare = answer and thinking is None and not header
    channels = Channels(notation, tools, opened=notation.opened(prompt.tokens), bare=bare)
    output = Output(tokenizer.decoder(notation, calls=bool(tools)), stops)
    return Prepared(source, tokenizer, prompt, output, channels, form, thinking, header)


def _form(request: pb.GenerateRequest, tokenizer: Tokenizer, notation: Notation | None) -> Form | None:
    if request.HasField("response_format"):
        field, grammar = of_response(request.response_format)
        return Form(field, grammar, tokenizer.vocabulary("response_format"))
    if request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
        return required_calls(request.chat, notation, tokenizer)
    return None
