"""An answer ends with a stop id, a stop string, its last token or a call, and no text of it is lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from daemon.engine.execution.answer import Answer
from daemon.engine.execution.events import FinishReason
from daemon.engine.execution.request import Request, SamplingParams
from daemon.engine.output.answer_parser import AnswerParser, AnswerRules
from daemon.engine.output.detokenizer import Output, Token
from tests.unit.engine.recorded_answers import HERMES, HERMES_CALL, TOOLS

EOS = 0


def answer(
    words: Sequence[str], *, most: int = 100, stops: tuple[str, ...] = (), parser: AnswerParser | None = None
) -> tuple[Answer, str, FinishReason | None]:
    """Return an answer of these words, a token each, then the stop id; what was sent of it; and why it ended."""
    request = Request(
        call_id=1,
        request_id="r",
        model_name="m",
        prompt=[1],
        max_tokens=most,
        sampling=SamplingParams(),
        stop_ids=frozenset({EOS}),
        message_ends=frozenset(),
    )
    made = Answer(request, Output(lambda ids: "".join(words[id_ - 1] for id_ in ids), stops), parser)
    text, reason = "", None
    for id_ in [*range(1, len(words) + 1), EOS]:
        piece, reason = made.accept(Token(id_))
        text += piece.text
        if reason is not None:
            break
    return made, text, reason


def test_stop_id_ends_an_answer_and_counts_as_a_token() -> None:
    made, text, reason = answer(["The", " sea"])
    assert (text, reason, made.tokens) == ("The sea", FinishReason.STOP, [1, 2, EOS])


def test_stop_string_ends_an_answer_and_is_no_part_of_it() -> None:
    made, text, reason = answer(["The", " s", "ea", " is"], stops=(" sea",))
    assert (text, reason, made.output.stop_match) == ("The", FinishReason.STOP, " sea")


@pytest.mark.parametrize(
    ("words", "text", "reason"),
    [
        (["The", " s", "ky", " is"], "The sky", FinishReason.LENGTH),
        (["The", " s", "ea", " is"], "The", FinishReason.STOP),
        (["The", " ", " s", " is"], "The  s", FinishReason.LENGTH),
    ],
)
def test_last_token_sends_what_a_stop_string_held_back(words: list[str], text: str, reason: FinishReason) -> None:
    made, sent, ended = answer(words, most=3, stops=(" sea",))
    assert (sent, ended, len(made.tokens)) == (text, reason, 3)


def test_call_ends_an_answer_only_with_its_end() -> None:
    """An answer that was cut off in its middle has reached its length, whatever calls came before."""
    for most, reason in ((100, FinishReason.TOOL_CALLS), (2, FinishReason.LENGTH)):
        parser = AnswerParser(HERMES, TOOLS, AnswerRules())
        made, _text, ended = answer([HERMES_CALL, " and", " more"], most=most, parser=parser)
        assert (ended, parser.calls) == (reason, 1)
        assert len(made.tokens) == (4 if most > 2 else 2)


def test_answer_that_stops_at_its_call_is_over_with_it() -> None:
    parser = AnswerParser(HERMES, TOOLS, AnswerRules(single=True))
    made, _text, ended = answer([HERMES_CALL, " and", " more"], parser=parser)
    assert (ended, made.tokens) == (FinishReason.TOOL_CALLS, [1])


def test_tokens_of_reasoning_are_counted_with_their_marks() -> None:
    parser = AnswerParser(HERMES, TOOLS, AnswerRules(opened=True))
    made, text, _reason = answer(["I", " think", "</think>", "Yes"], parser=parser)
    assert (text, made.reasoning_tokens) == ("Yes", 3)
