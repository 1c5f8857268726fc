"""Answers in any notation reach the callers of every API as they are meant, however they are cut."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.engine.execution.answer import Answer as SampledAnswer
from daemon.engine.execution.events import FinishReason
from daemon.engine.output.answer_parser import AnswerParser, AnswerRules
from daemon.engine.output.detokenizer import Output, Piece, Token
from daemon.http.anthropic.answers import MessageStream, message
from daemon.http.generation import Ask, collect
from daemon.http.ollama.chat import ChatAnswer
from daemon.http.ollama.figures import Figures
from daemon.http.openai.chat_answers import ChatStream, completion
from daemon.http.responses.answering import Answer as ResponseAnswer
from daemon.http.responses.request_types import ResponseRequest
from mlx_sidecar import (
    Delta,
    Finished,
    GeneratedToolCall,
    GenerateEvent,
    Started,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from tests.support.answer_checks import markup_of
from tests.support.call_breaker import broken
from tests.support.call_writer import HANDS, Answer, answer

ANSWERS = 12
SEED = secrets.randbelow(2**32)
EOS = 0
TIMINGS = Timings(0.1, 0.0, 0.0, 0.0, 0.1, 0.2, 0.2)
REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.TOOL_CALLS: "tool_calls"}

Calls = list[tuple[str, dict[str, Any]]]


@dataclass
class Meant:
    """What a caller has of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: Calls = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)


@pytest.mark.parametrize("name", HANDS)
def test_each_api_tells_the_same_answer(name: str) -> None:
    """Whole answers are those that were written; of cut, stopped and broken ones all APIs tell the same."""
    for seed in range(SEED, SEED + ANSWERS):
        random = Random(seed)
        written = answer(HANDS[name], random)
        harm = random.randrange(4)
        text = broken(written.written, random) if harm == 1 else written.written
        words = _words(text, random)
        most = random.randrange(1, len(words) + 2) if harm == 2 and words else len(words) + 1
        at = random.randrange(max(1, len(text)))
        stops = (text[at : at + random.randrange(1, 5)],) if harm == 3 and text else ()
        events = _events(name, written, words, most, stops)
        told = {api: tell(events) for api, tell in APIS.items()}
        seen = told["gRPC"]
        for api, heard in told.items():
            if api == "Responses":
                heard.text += _white_space_behind_items(events)
            assert (heard.text, heard.reasoning, heard.calls) == (seen.text, seen.reasoning, seen.calls), (
                f"{api}, seed {seed}"
            )
        if not harm:
            assert seen.calls == [(call.name, dict(call.arguments)) for call in written.calls], f"seed {seed}"
            assert (seen.text, seen.reasoning) == (written.text, written.reasoning), f"seed {seed}"
        _check_scores(told, seen, events, f"seed {seed}")


def _check_scores(told: dict[str, Meant], seen: Meant, events: Sequence[GenerateEvent], seed: str) -> None:
    for api in ("OpenAI stream", "OpenAI", "Ollama stream", "Ollama"):
        assert told[api].tokens == seen.tokens, f"{api}, {seed}"


def _white_space_behind_items(events: Sequence[GenerateEvent]) -> str:
    """Return the white space at the end that is no message of the Responses API, as it stands behind another item."""
    white, written, behind = "", False, False
    for delta in (event for event in events if isinstance(event, Delta)):
        if delta.reasoning:
            written, behind = False, True
        if delta.text:
            written = written or bool(delta.text.strip())
            white = "" if written else white + delta.text
        if any(part.id for part in delta.tool_call_deltas):
            written, behind = False, True
    return white if behind else ""


def _words(text: str, random: Random) -> list[bytes]:
    """Return a text as tokens, some of which are parts of characters."""
    data, at, words = text.encode(), 0, []
    while at < len(data):
        size = random.choice((1, 1, 2, 3, 5, 9))
        words.append(data[at : at + size])
        at += size
    return words


def _events(
    name: str, written: Answer, words: Sequence[bytes], most: int, stops: tuple[str, ...]
) -> list[GenerateEvent]:
    """Return the events of an answer as a client gets them, the token that ends it included."""
    parser = AnswerParser(markup_of(HANDS[name]), written.tools, AnswerRules(opened=written.opened))
    output = Output(lambda ids: b"".join(words[id_ - 1] for id_ in ids).decode("utf-8", "replace"), stops)
    request: Any = SimpleNamespace(stop_ids={EOS}, max_tokens=most, request_id="r")
    sampled = SampledAnswer(request, output, parser)
    events: list[GenerateEvent] = [Started("r", "m", 3, 0)]
    reason = None
    for id_ in [*range(1, len(words) + 1), EOS]:
        text = words[id_ - 1].decode("utf-8", "replace") if id_ else ""
        piece, reason = sampled.accept(Token(id_, -0.5, (), text))
        if piece:
            events.append(_delta(piece))
        if reason is not None:
            break
    assert reason is not None
    usage = Usage(3, 0, len(sampled.tokens), reasoning_tokens=sampled.reasoning_tokens)
    return [*events, Finished(REASONS[reason], output.stop_match, usage, TIMINGS)]


def _delta(piece: Piece) -> Delta:
    calls = [GeneratedToolCall(call.index, call.id, call.name, call.arguments_json) for call in piece.calls]
    parts = [
        ToolCallDelta(part.index, part.id, part.name, part.arguments_json, part.withdrawn) for part in piece.call_pieces
    ]
    scores = tuple(TokenLogprob(token.id, token.logprob or 0.0, (), token.text) for token in piece.tokens)
    ids = tuple(token.id for token in piece.tokens)
    return Delta(piece.text, ids, scores, piece.reasoning, tuple(calls), tuple(parts))


def _grpc(events: Sequence[GenerateEvent]) -> Meant:
    found = collect(events)
    calls = [(call.name, json.loads(call.arguments_json)) for call in found.calls]
    return Meant(found.text, found.reasoning, calls, [one.text for one in found.logprobs])


def _openai_stream(events: Sequence[GenerateEvent]) -> Meant:
    stream, meant = ChatStream(include_usage=True), Meant()
    parts: dict[int, list[str]] = {}
    for event in events:
        for chunk in stream.chunks(event):
            data = json.loads(chunk.model_dump_json(exclude_unset=True))
            for choice in data["choices"]:
                delta = choice["delta"]
                meant.text += delta.get("content") or ""
                meant.reasoning += delta.get("reasoning_content") or ""
                meant.tokens += [one["token"] for one in (choice.get("logprobs") or {}).get("content", [])]
                for call in delta.get("tool_calls") or ():
                    named = parts.setdefault(call["index"], ["", ""])
                    named[0] += call["function"].get("name") or ""
                    named[1] += call["function"]["arguments"]
    meant.calls = [(name, json.loads(text)) for name, text in parts.values() if _is_whole(text, events)]
    return meant


def _is_whole(text: str, events: Sequence[GenerateEvent]) -> bool:
    """Whether arguments are those of a whole call."""
    return any(call.arguments_json == text for event in events if isinstance(event, Delta) for call in event.tool_calls)


def _openai(events: Sequence[GenerateEvent]) -> Meant:
    (choice,) = json.loads(completion([collect(events)]).model_dump_json(exclude_unset=True))["choices"]
    told = choice["message"]
    calls = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in told.get("tool_calls") or ()]
    tokens = [one["token"] for one in (choice["logprobs"] or {}).get("content", [])]
    return Meant(told["content"] or "", told.get("reasoning_content") or "", calls, tokens)


def _responses(events: Sequence[GenerateEvent]) -> Meant:
    request = ResponseRequest.model_validate_json(json.dumps({"model": "m", "input": "Hi"}))
    made = ResponseAnswer(request, Ask("m", "", request_id="r"), now=1000.0)
    sent = [json.loads(one.model_dump_json(exclude_unset=True)) for event in events for one in made.add(event)]
    meant, streamed, scores = Meant(), Meant(), ""
    for item in json.loads(made.kept().model_dump_json(exclude_unset=True))["output"]:
        if item["type"] == "message":
            meant.text += item["content"][0]["text"]
            scores += "".join(one["token"] for one in item["content"][0]["logprobs"])
        elif item["type"] == "reasoning":
            meant.reasoning += item["content"][0]["text"]
        else:
            meant.calls.append((item["name"], json.loads(item["arguments"])))
    for one in sent:
        streamed.text += one["delta"] if one["type"] == "response.output_text.delta" else ""
        streamed.reasoning += one["delta"] if one["type"] == "response.reasoning_text.delta" else ""
        if one["type"] == "response.output_item.done" and one["item"]["type"] == "function_call":
            streamed.calls.append((one["item"]["name"], json.loads(one["item"]["arguments"])))
    assert streamed == meant
    stopped = any(isinstance(event, Finished) and event.stop_match for event in events)
    if not (meant.calls or meant.reasoning or stopped):
        # Tokens have marks before the text, and among it. No token of a stop string is listed.
        listed = iter(scores)
        assert all(character in listed for character in meant.text) or "\ufffd" in scores
    return meant


def _anthropic_stream(events: Sequence[GenerateEvent]) -> Meant:
    stream, meant = MessageStream(), Meant()
    blocks: list[dict[str, Any]] = []
    for event in events:
        for one in stream.events(event):
            data = json.loads(one.model_dump_json(exclude_unset=True))
            if "content_block" in data:
                assert data["index"] == len(blocks)
                blocks.append({**data["content_block"], "written": ""})
            elif "delta" in data and "index" in data:
                assert data["index"] == len(blocks) - 1
                delta = data["delta"]
                meant.text += delta.get("text", "")
                meant.reasoning += delta.get("thinking", "")
                blocks[-1]["written"] += delta.get("partial_json", "")
    for block in blocks:
        if block.get("name") and _is_whole(block["written"], events):
            meant.calls.append((block["name"], json.loads(block["written"])))
    return meant


def _anthropic(events: Sequence[GenerateEvent]) -> Meant:
    meant = Meant()
    for block in json.loads(message(events).model_dump_json())["content"]:
        meant.text += block.get("text", "")
        meant.reasoning += block.get("thinking", "")
        if block["type"] == "tool_use":
            meant.calls.append((block["name"], block["input"]))
    return meant


def _ollama_stream(events: Sequence[GenerateEvent]) -> Meant:
    made, meant = ChatAnswer(Figures("m")), Meant()
    for event in events:
        for piece in made.pieces(event):
            _add_ollama(meant, json.loads(piece.model_dump_json(exclude_unset=True)))
    return meant


def _ollama(events: Sequence[GenerateEvent]) -> Meant:
    meant = Meant()
    whole = ChatAnswer(Figures("m")).whole(collect(events))
    _add_ollama(meant, json.loads(whole.model_dump_json(exclude_unset=True)))
    return meant


def _add_ollama(meant: Meant, piece: dict[str, Any]) -> None:
    told = piece["message"]
    meant.text += told.get("content", "")
    meant.reasoning += told.get("thinking", "")
    meant.calls += [(call["function"]["name"], call["function"]["arguments"]) for call in told.get("tool_calls", ())]
    meant.tokens += [one["token"] for one in piece.get("logprobs", ())]


APIS = {
    "gRPC": _grpc,
    "OpenAI stream": _openai_stream,
    "OpenAI": _openai,
    "Responses": _responses,
    "Anthropic stream": _anthropic_stream,
    "Anthropic": _anthropic,
    "Ollama stream": _ollama_stream,
    "Ollama": _ollama,
}
