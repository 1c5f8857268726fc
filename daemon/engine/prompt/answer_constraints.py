"""What the answer to a request is kept to: its form, the grammar of its calls, the budget of its reasoning."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from daemon.engine.output.answer_parser import AnswerParser
from daemon.engine.output.chat_markup import ChatMarkup, Thinking
from daemon.engine.output.detokenizer import Decode
from daemon.engine.output.tool_calls import Tool, declared
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.engine.structured_output.call_guard import CallGuard, call_guard
from daemon.engine.structured_output.constraint import Constraint
from daemon.engine.structured_output.free_mask import FreeMask
from daemon.engine.structured_output.grammar import ResponseFormat, of_response, up_to
from daemon.engine.structured_output.matcher import GrammarMatcher
from daemon.engine.structured_output.required_calls import calls_or_form, required_calls
from daemon.engine.structured_output.token_mask import TokenMask
from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb


def form_of(
    request: pb.GenerateRequest,
    tokenizer: Tokenizer,
    markup: ChatMarkup | None,
    tools: Mapping[str, Tool],
    header: tuple[int, ...],
) -> GrammarMatcher | None:
    """
    Return the form that the whole answer has to keep to, at its beginning; None if it is free.

    Args:
        request: The request.
        tokenizer: The model's tokenizer.
        markup: The model's marks; None if it has none, or the prompt is no conversation.
        tools: The tools that may be called, by the field of the request that has each.
        header: Ids that a text in a form begins with. With tools they are a part of the form.

    Raises:
        SidecarError: INVALID_ARGUMENT if the form cannot be enforced.
    """
    if request.HasField("response_format"):
        wanted = response_format(request.response_format)
        if tools:
            return tokenizer.remembered(
                ("either", wanted, header, *_key(tools)),
                lambda: calls_or_form(tools, markup, tokenizer.vocabulary, wanted, header),
            ).again()
        return tokenizer.remembered(
            wanted,
            lambda: GrammarMatcher(wanted.field, of_response(wanted), tokenizer.vocabulary("response_format")),
        ).again()
    if request.chat.tool_choice == pb.TOOL_CHOICE_REQUIRED:
        once = bool(request.chat.required_tool)
        return tokenizer.remembered(
            ("required", once, *_key(tools)),
            lambda: required_calls(tools, markup, tokenizer.vocabulary, once=once),
        ).again()
    return None


def _key(tools: Mapping[str, Tool]) -> tuple[tuple[str, ...], str]:
    """Return all that a grammar of calls, and what is told about it, depends on."""
    return tuple(tools), declared(tuple(tools.values()))


def response_format(wanted: pb.ResponseFormat) -> ResponseFormat:
    """Return the response format of a request, which has one of its fields."""
    kind = wanted.WhichOneof("kind")
    assert kind is not None, "the server refuses a response format without a kind"
    return ResponseFormat(kind, "" if kind == "json_object" else getattr(wanted, kind))


def budget_of(request: pb.GenerateRequest, markup: ChatMarkup | None) -> int | None:
    """
    Return the most tokens of a request's reasoning; None if it has no limit.

    Raises:
        SidecarError: INVALID_ARGUMENT if it has a limit and the model is not known to reason.
    """
    if not request.HasField("reasoning_budget"):
        return None
    if markup is None or not markup.think_end:
        raise invalid("reasoning_budget", "cannot be kept to: this model has no known marks of reasoning; leave it out")
    return request.reasoning_budget


def ending_of(tokenizer: Tokenizer, markup: ChatMarkup, thinking: Thinking | None) -> GrammarMatcher | None:
    """
    Return reasoning up to its end mark as a form; None if the ids of the mark are never others.

    Args:
        tokenizer: The model's tokenizer.
        markup: The model's marks.
        thinking: How the answer begins with reasoning; None if there is no reasoning.
    """
    if thinking is None or len(thinking.end) == 1:
        return None
    tokens, mark = tokenizer.vocabulary("response_format"), markup.think_end
    if tokens.special_in(mark):
        return None
    return tokenizer.remembered(
        ("reasoning", mark), lambda: GrammarMatcher("response_format", up_to(mark), tokens)
    ).again()


class AnswerConstraint(Protocol):
    """What one answer is kept to."""

    def again(self) -> AnswerConstraint:
        """Return it for another answer to the same prompt, at its beginning."""

    def mask(self, vocab: int) -> Constraint:
        """Return the mask of the tokens that may be sampled, for logits of width `vocab`. For the MLX thread only."""


@dataclass(frozen=True, slots=True)
class FormConstraint:
    """
    Keeps an answer to a form, behind its reasoning.

    Attributes:
        form: The form.
        eos_ids: Ids that end the sequence.
        thinking: How the answer begins with reasoning; None if there is no reasoning.
        header: Ids that the answer begins with, before its form.
        budget: Most tokens of the reasoning; None if there is no limit.
        ending: See `TokenMask`.
    """

    form: GrammarMatcher
    eos_ids: Collection[int]
    thinking: Thinking | None = None
    header: tuple[int, ...] = ()
    budget: int | None = None
    ending: GrammarMatcher | None = None

    def again(self) -> FormConstraint:
        """Return it for another answer, see `AnswerConstraint`."""
        ending = None if self.ending is None else self.ending.again()
        return replace(self, form=self.form.again(), ending=ending)

    def mask(self, vocab: int) -> TokenMask:
        """Return the mask, see `AnswerConstraint`."""
        return TokenMask(self.form, vocab, self.eos_ids, self.thinking, self.header, self.budget, self.ending)


@dataclass(frozen=True, slots=True)
class FreeConstraint:
    """
    Keeps the calls of an answer without a form to their grammar, and its reasoning to a budget.

    Attributes:
        parser: A parser of such an answer; each mask follows it with one of its own.
        decode: Returns the text of ids, with all marks.
        guard: The grammar of its calls; None if they are free.
        budget: Most tokens of the reasoning; None if there is no limit.
        end: Ids of the mark that ends the reasoning.
        request_id: The request that is logged for.
    """

    parser: AnswerParser
    decode: Decode
    guard: CallGuard | None
    budget: int | None
    end: tuple[int, ...]
    request_id: str

    def again(self) -> FreeConstraint:
        """Return it for another answer, see `AnswerConstraint`: each mask has a parser of its own."""
        return self

    def mask(self, vocab: int) -> FreeMask:
        """Return the mask, see `AnswerConstraint`."""
        scout = self.parser.again()
        return FreeMask(
            vocab,
            scout,
            self.decode,
            guard=self.guard,
            budget=self.budget,
            end=self.end,
            request_id=self.request_id,
        )


def free_constraint(
    tokenizer: Tokenizer,
    parser: AnswerParser,
    decode: Decode,
    tools: Mapping[str, Tool],
    budget: int | None,
    thinking: Thinking | None,
    request_id: str,
) -> tuple[FreeConstraint | None, list[str]]:
    """
    Return what keeps an answer without a form to the grammar of its calls and to the budget of its reasoning.

    Args:
        tokenizer: The model's tokenizer.
        parser: A parser of such an answer.
        decode: Returns the text of ids, with all marks.
        tools: The tools that may be called, by the field of the request that has each.
        budget: Most tokens of the reasoning; None if there is no limit.
        thinking: How the answer begins with reasoning; None if there is no reasoning.
        request_id: The request that is logged for.

    Returns:
        The constraint, or None if nothing is to be kept to; warnings about what cannot be kept to.
    """
    guard, unkept = tokenizer.remembered(
        ("calls", *_key(tools)), lambda: call_guard(tools, tokenizer.markup, tokenizer.vocabulary)
    )
    end = () if thinking is None else thinking.end
    budget = budget if end else None
    if guard is None and budget is None:
        return None, unkept
    return FreeConstraint(parser, decode, guard, budget, end, request_id), unkept
