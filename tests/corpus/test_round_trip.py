"""A turn that is parsed and sent back renders to what the model had written, so the next request reuses all of it."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from daemon.engine.output.answer_parser import Parts
from daemon.engine.prompt.preparation import prepare_request, render
from daemon.engine.prompt.tokenizer import Tokenizer
from daemon.shared.errors import SidecarError
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.corpus import families
from tests.corpus.checkpoints import SOURCE, with_template
from tests.corpus.conversations import ASKED
from tests.corpus.packages import LLAMA_CPP, members
from tests.corpus.rendering import RecordedTemplates
from tests.corpus.round_trips import CANNOT, TURN_ENDS
from tests.support.call_values import Values

KINDS = ("calls", "text", "reasoning")
"""Turns with calls alone, with text before them, and with reasoning and text before them."""
TURNS = 4
SEED = secrets.randbelow(2**32)


@dataclass(frozen=True)
class Trip:
    """One turn of a conversation: what the model was given, what it wrote, and what it would be given next."""

    prompt: str
    wrote: str
    following: str


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", families.SMALL, ids=lambda file: file.stem)
def test_small_templates_turns_come_back(folder: Path, templates: RecordedTemplates, file: Path, kind: str) -> None:
    check(with_template(folder, file.read_text(), templates), templates, file.stem, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in families.TEMPLATES if name not in families.NO_CALLS])
def test_turns_come_back(folder: Path, templates: RecordedTemplates, name: str, kind: str) -> None:
    template = (members(LLAMA_CPP, "models/templates") / f"{name}.jinja").read_text()
    check(with_template(folder, template, templates), templates, name, kind)


def check(tokenizer: Tokenizer, templates: RecordedTemplates, name: str, kind: str) -> None:
    """Check random turns of a kind; a template that cannot have them back has to fail one of them."""
    whole = []
    for seed in range(SEED, SEED + TURNS):
        tool, turn = drawn(name, kind, Random(seed))
        taken = tried(turn, tool, tokenizer, templates)
        whole.append(taken is not None and taken.following.startswith(taken.prompt + taken.wrote))
        if kind not in CANNOT.get(name, {}):
            assert taken is not None, f"seed {seed}: the template writes another beginning"
            assert taken.following[: len(taken.prompt + taken.wrote)] == taken.prompt + taken.wrote, f"seed {seed}"
            check_tokens(tokenizer, taken)
    if kind in CANNOT.get(name, {}):
        assert not all(whole), "it can: the table of what cannot come back is out of date"


def check_tokens(tokenizer: Tokenizer, taken: Trip) -> None:
    """Check that the next prompt begins with the tokens of this one and of its answer; the last may join others."""
    before = [*tokenizer.encode(taken.prompt, special=False), *tokenizer.encode(taken.wrote, special=False)]
    after = tokenizer.encode(taken.following, special=False)
    same = next(
        (index for index, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before)
    )
    assert same >= len(before) - 1 or tokenizer.encode(taken.prompt + taken.wrote, special=False)[:same] == after[:same]


def drawn(name: str, kind: str, random: Random) -> tuple[pb.Tool, pb.ChatMessage]:
    """Return a tool with a random schema, and a turn that calls it."""
    keys = "abcdefgh_" if name in families.BARE_KEYS else "abc éß-"
    raw = (*families.RAW, "\\") if name in families.UNESCAPED else families.RAW
    schema, first = Values(random, keys, raw, unions=False).arguments()
    while name in families.NO_NULL and '"type": "null"' in json.dumps(schema):
        schema, first = Values(random, keys, raw, unions=False).arguments()
    second = dict(first)
    if name in families.SORTED:
        first, second = (dict(sorted(each.items(), key=lambda pair: pair[0].lower())) for each in (first, second))
    calls = [first] if name in families.ONE_CALL or random.random() < 0.5 else [first, second]
    turn = pb.ChatMessage(role="assistant")
    for number, arguments in enumerate(calls):
        turn.tool_calls.append(
            pb.ToolCall(id=f"call0000{number}", name="do_it", arguments_json=json.dumps(arguments, ensure_ascii=False))
        )
    if kind != "calls":
        turn.content = random.choice(["I look.", "Zwei Zeilen:\n\n* é", "a 🙂"])
    if kind == "reasoning":
        turn.reasoning_content = random.choice(["Hm.", "Eins\n\nzwei é"])
    return pb.Tool(name="do_it", description="Does it.", parameters_json=json.dumps(schema)), turn


def tried(turn: pb.ChatMessage, tool: pb.Tool, tokenizer: Tokenizer, templates: RecordedTemplates) -> Trip | None:
    """Return what `trip` does; None as well if the template refuses the conversation."""
    try:
        return trip(turn, tool, tokenizer, templates)
    except SidecarError:
        return None


def trip(turn: pb.ChatMessage, tool: pb.Tool, tokenizer: Tokenizer, templates: RecordedTemplates) -> Trip | None:
    """
    Have a model write a turn as the template does, parse it, and send it back.

    Returns:
        What happened; None if the template does not write the turn behind the prompt.
    """
    switches = [None] if tokenizer.shape(tools=True).switch is None else [None, bool(turn.reasoning_content)]
    for switch in switches:
        asked = pb.Chat(messages=[ASKED], tools=[tool])
        if switch is not None:
            asked.enable_thinking = switch
        prompt, whole = text_of(asked, tokenizer, templates), text_of(following(asked, turn), tokenizer, templates)
        if whole.startswith(prompt):
            break
    else:
        return None
    end = TURN_ENDS.search(whole, len(prompt))
    wrote = whole[len(prompt) : end.start() if end else len(whole)]
    parts = parts_of(wrote, asked, tokenizer)
    back = pb.ChatMessage(role="assistant", content=parts.text, reasoning_content=parts.reasoning)
    for call in parts.calls:
        back.tool_calls.append(pb.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json))
    if len(parts.calls) != len(turn.tool_calls):
        return None
    return Trip(prompt, wrote, text_of(following(asked, back), tokenizer, templates))


def following(asked: pb.Chat, turn: pb.ChatMessage) -> pb.Chat:
    """Return the next request: the turn, and the answers of the tools."""
    chat = pb.Chat()
    chat.CopyFrom(asked)
    chat.messages.append(turn)
    for call in turn.tool_calls:
        chat.messages.append(pb.ChatMessage(role="tool", content="RESULT1", tool_call_id=call.id))
    return chat


def text_of(chat: pb.Chat, tokenizer: Tokenizer, templates: RecordedTemplates) -> str:
    """Return the text of a conversation."""
    render(pb.GenerateRequest(chat=chat), tokenizer)
    assert templates.answered is not None
    return templates.answered


def parts_of(answer: str, asked: pb.Chat, tokenizer: Tokenizer) -> Parts:
    """Return the text, the reasoning and the calls of an answer to a request."""
    parser = prepare_request(pb.GenerateRequest(chat=asked), SOURCE, tokenizer).parser
    assert parser is not None
    parts = parser.add(answer)
    parts += parser.finish(ended=True)
    return parts
