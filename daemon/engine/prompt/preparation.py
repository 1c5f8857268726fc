"""Prepares a Generate request off the MLX thread: prompt ids, limits, the parser of its answer, and its constraint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from daemon.cache.identity import ModelSource
from daemon.engine.output.answer_parser import AnswerParser, AnswerRules
from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.detokenizer import Decode, Output
from daemon.engine.output.tool_calls import Tool
from daemon.engine.prompt.answer_constraints import (
    AnswerConstraint,
    FormConstraint,
    budget_of,
    ending_of,
    form_of,
    free_constraint,
)
from daemon.engine.prompt.conversation import flagged, json_object, turns, warnings
from daemon.engine.prompt.places import Places, places_of
from daemon.engine.prompt.template_options import cut, declarations, left_open, template_options
from daemon.engine.prompt.template_shape import FLAGS
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.shared.errors import Reason, SidecarError, invalid
from daemon.shared.sampling_options import check_effects, default_temperature
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
        parser: Splits the answer into text, reasoning and calls; None if all of it is text, as after raw prompts.
        constraint: What the answer is kept to; None if any token may follow any other.
    """

    source: ModelSource
    tokenizer: Tokenizer
    prompt: Prompt
    output: Output
    parser: AnswerParser | None = None
    constraint: AnswerConstraint | None = None

    def again(self) -> PreparedRequest:
        """Return it for another answer to its prompt: with an output, a parser and a constraint at their beginning."""
        return replace(
            self,
            output=Output(self.output.decode, self.output.stops, self.output.before),
            parser=None if self.parser is None else self.parser.again(),
            constraint=None if self.constraint is None else self.constraint.again(),
        )


def prepare_request(
    request: pb.GenerateRequest, source: ModelSource, tokenizer: Tokenizer, rendered: Rendered | None = None
) -> PreparedRequest:
    """
    Check a request against its model and prepare it. Blocks, so it runs off the MLX thread.

    Args:
        request: The request.
        source: Its model.
        tokenizer: The model's tokenizer.
        rendered: Its conversation as text; None renders it here.

    Raises:
        SidecarError: INVALID_ARGUMENT if the prompt or the form cannot be used with this model;
            CONTEXT_LENGTH_EXCEEDED if prompt and completion do not fit its context.
    """
    check_effects(request, default_temperature(source.default_sampling))
    prompt = prepare_prompt(request, source, tokenizer, rendered)
    markup = tokenizer.markup if request.HasField("chat") else None
    formed, continued = request.HasField("response_format"), request.chat.continue_final_message
    # A continued prompt ends within the text of an answer: a form holds for the rest, and leaves no room for calls.
    tools = {} if formed and continued else callable_tools(request.chat)
    header = markup.answer_header(prompt.tokens) if markup is not None and formed and not continued else ()
    form = form_of(request, tokenizer, markup, tools, header)
    budget = budget_of(request, markup)
    constraint: AnswerConstraint | None = None
    if markup is None:
        if form is not None:
            constraint = FormConstraint(form, tokenizer.eos_ids)
        return PreparedRequest(source, tokenizer, prompt, _output(request, prompt, tokenizer.decode), None, constraint)
    if markup.calls is None:  # the template gets the tools, but no mark tells a call from text
        tools = {}
    wanted = request.chat.enable_thinking or not request.chat.HasField("enable_thinking")
    thinking = markup.thinking(prompt.tokens, wanted=wanted and not continued)
    bare = continued or (formed and thinking is None and not header)
    parser = _parser(request, markup, tools, prompt.tokens, bare=bare)
    decode = tokenizer.decoder(markup, calls=bool(tools))
    if form is not None:
        ending = ending_of(tokenizer, markup, thinking)
        constraint = FormConstraint(form, tokenizer.eos_ids, thinking, () if tools else header, budget, ending)
    else:
        constraint, unkept = free_constraint(tokenizer, parser, decode, tools, budget, thinking, request.request_id)
        prompt = replace(prompt, warnings=(*prompt.warnings, *unkept))
    return PreparedRequest(source, tokenizer, prompt, _output(request, prompt, decode), parser, constraint)


def _parser(
    request: pb.GenerateRequest, markup: ChatMarkup, tools: Mapping[str, Tool], prompt: list[int], *, bare: bool
) -> AnswerParser:
    """Return the parser of the answer to a conversation; `bare` as in `AnswerRules`."""
    opened, continued = markup.opened(prompt), request.chat.continue_final_message
    rules = AnswerRules(
        opened=opened,
        reasoned=markup.closed(prompt) and not continued,
        bare=bare,
        single=request.stop.at_tool_call,
        in_form=request.HasField("response_format"),
        before=request.chat.messages[-1].content if continued and not opened else "",
    )
    return AnswerParser(markup, tuple(tools.values()), rules)


def _output(request: pb.GenerateRequest, prompt: Prompt, decode: Decode) -> Output:
    """Return what turns the ids of the answer into text. An answer that goes on with a text begins behind its ids."""
    goes_on = request.chat.continue_final_message or not request.HasField("chat")
    return Output(decode, tuple(request.stop.strings), prompt.tokens if goes_on else ())


DEFAULT_MAX_TOKENS = 2048
"""Most tokens of a completion if the request names no maximum."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """
    A prompt that fits its model.

    Attributes:
        tokens: Its ids.
        max_tokens: Most tokens to generate after it; 0 only scores it.
        places: Where its tokens lie in the request; None if that is not known.
        warnings: What its template left out, a sentence for each field.
    """

    tokens: list[int]
    max_tokens: int
    warnings: tuple[str, ...] = ()
    places: Places | None = None


def prepare_prompt(
    request: pb.GenerateRequest, source: ModelSource, tokenizer: Tokenizer, rendered: Rendered | None = None
) -> Prompt:
    """
    Return the prompt of a request, rendered, tokenised and checked. Runs on the engine's pools of threads.

    Args:
        request: The request.
        source: Its model.
        tokenizer: The model's tokenizer.
        rendered: Its conversation as text; None renders it here.

    Raises:
        SidecarError: INVALID_ARGUMENT if the prompt is empty, cannot be rendered or has ids that the model has not;
            CONTEXT_LENGTH_EXCEEDED if prompt and completion do not fit the model's context.
    """
    kind = request.WhichOneof("prompt")
    if kind == "chat":
        rendered = rendered or render(request, tokenizer)
        tokens: list[int] = tokenizer.encode_turns(rendered.text, request.cache)
    else:
        tokens = tokenizer.encode_prompt(request.text) if kind == "text" else list(request.tokens.ids)
    if not tokens:
        raise invalid(kind or "prompt", "is empty; a prompt needs at least one token")
    vocab = source.vocab_size or tokenizer.size
    check_ids(lambda index, _: f"tokens.ids[{index}]" if kind == "tokens" else kind or "prompt", tokens, vocab)
    check_ids(lambda index, _: f"stop.token_ids[{index}]", request.stop.token_ids, vocab)
    check_ids(lambda _, token: f"sampling.logit_bias[{token}]", list(request.sampling.logit_bias), vocab)
    places, warned = _places(request, tokens, rendered), () if rendered is None else rendered.warnings
    return Prompt(tokens, _max_tokens(request, len(tokens), source.context_length), warned, places)


def _places(request: pb.GenerateRequest, tokens: list[int], rendered: Rendered | None) -> Places | None:
    if request.HasField("chat"):
        contents = [message.content for message in request.chat.messages]
        return places_of(tokens, rendered.text, contents) if rendered is not None else None
    return places_of(tokens, request.text, None)


@dataclass(frozen=True, slots=True)
class Rendered:
    """
    A conversation as text.

    Attributes:
        text: The text.
        warnings: What the template left out of it, a sentence for each field.
    """

    text: str
    warnings: tuple[str, ...] = ()


def render(request: pb.GenerateRequest, tokenizer: Tokenizer, now: float | None = None) -> Rendered:
    """
    Return the text of a request's conversation, by its model's own template. Blocks while another process renders it.

    Args:
        request: The request.
        tokenizer: The model's tokenizer.
        now: What the template is told that the time is; see `Templates.render`.

    Raises:
        SidecarError: INVALID_ARGUMENT if the template is missing, refuses the conversation, takes too much time or
            memory, or does not read an option that is set.
    """
    if not tokenizer.has_chat_template:
        raise invalid("chat", "needs a chat template and this model has none; send text instead")
    chat = request.chat
    tools = offered_tools(chat)
    shape = tokenizer.shape(tools=bool(tools))
    messages, options = turns(chat.messages, shape), template_options(request, shape, declarations(tools, shape))
    if shape.switch == FLAGS and chat.HasField("enable_thinking"):
        messages = flagged(messages, thinking=chat.enable_thinking)
    if chat.continue_final_message:
        content = chat.messages[-1].content
        text = cut(tokenizer.render(left_open(messages), now, **options), content)
    else:
        text = tokenizer.render(messages, now, **options)
    lost = tuple(warnings(chat.messages, shape))
    if lost:
        tokenizer.log_losses(tools=bool(tools))
    return Rendered(text, lost)


def callable_tools(chat: pb.Chat) -> dict[str, Tool]:
    """
    Return the tools that may be called, by the field of the request that has each. The model is told of others as well.

    Raises:
        SidecarError: As `offered_tools`.
    """
    only = {chat.required_tool} if chat.required_tool else set(chat.allowed_tools)
    tools = enumerate(offered_tools(chat))
    return {f"chat.tools[{index}]": tool for index, tool in tools if not only or tool.name in only}


def offered_tools(chat: pb.Chat) -> list[Tool]:
    """
    Return the tools that the model is told of: those of the conversation, or none if `tool_choice` is NONE.

    Raises:
        SidecarError: INVALID_ARGUMENT if a schema is no JSON object.
    """
    tools = [
        Tool(tool.name, tool.description, json_object(f"chat.tools[{index}].parameters_json", tool.parameters_json))
        for index, tool in enumerate(chat.tools)
    ]
    return [] if chat.tool_choice == pb.TOOL_CHOICE_NONE else tools


def check_ids(field: Callable[[int, int], str], ids: Sequence[int], vocab: int) -> None:
    """
    Refuse ids that the model has not.

    Args:
        field: Returns the field of the request that has the id, given its position and the id.
        ids: The ids.
        vocab: Number of ids that the model has.
    """
    if ids and max(ids) >= vocab:
        index, token = next((index, token) for index, token in enumerate(ids) if token >= vocab)
        raise invalid(
            field(index, token), f"is token {token}, and the ids of this model end at {vocab - 1}; leave it out"
        )


def _max_tokens(request: pb.GenerateRequest, prompt: int, context: int) -> int:
    """
    Return the most tokens to generate.

    Args:
        request: The request.
        prompt: Tokens of its prompt.
        context: The model's context length in tokens; 0 if it states none.

    Raises:
        SidecarError: CONTEXT_LENGTH_EXCEEDED if prompt and completion do not fit the context.
    """
    wanted = request.max_tokens if request.HasField("max_tokens") else None
    if not context:
        return DEFAULT_MAX_TOKENS if wanted is None else wanted
    least = 1 if wanted is None else wanted
    if prompt + least > context:
        fewer = bool(wanted) and prompt < context  # whether a lower max_tokens would do
        asked, fix = (f" plus max_tokens {wanted}", "lower max_tokens") if fewer else ("", "shorten the prompt")
        raise SidecarError(
            Reason.CONTEXT_LENGTH_EXCEEDED,
            f"the prompt has {prompt} tokens{asked}, but the model's context holds {context}; {fix}",
            metadata={
                "prompt_tokens": str(prompt),
                "max_tokens": str(least),
                "context_length": str(context),
            },
            field="max_tokens" if fewer else request.WhichOneof("prompt") or "prompt",
        )
    return min(DEFAULT_MAX_TOKENS, context - prompt) if wanted is None else wanted
