"""The detokenizer: whole characters, no part of a stop string, every id once; the pieces together are the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.engine.output.detokenizer import Detokenizer, Output, Token
from daemon.engine.prompt.tokenizer import Tokenizer
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Harness, generate

TEXTS = st.text("ab é漢字🙂👩‍👩‍👧\u0301", max_size=12)


def of_bytes(ids: Sequence[int]) -> str:
    """Decode ids that are bytes, as byte-level tokenizers do. Other bytes become replacement characters."""
    return bytes(ids).decode("utf-8", "replace")


def without_specials(ids: Sequence[int]) -> str:
    """Decode characters; ids below 32 are special and have no text."""
    return "".join(chr(one) for one in ids if one >= 32)


def pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return the text that a detokenizer shows after each id, and at the end."""
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.add(one) for one in ids), detokenizer.flush()]


@given(TEXTS)
def test_detokenizer_never_splits_a_character(text: str) -> None:
    """A character may come in up to four tokens."""
    shown = pieces(text.encode(), of_bytes)
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)


@given(st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0xFF])), max_size=30))
def test_undecodable_bytes_become_replacement_text(ids: list[int]) -> None:
    """Such bytes are held back for three tokens at most."""
    shown = pieces(ids, of_bytes)
    assert "".join(shown) == of_bytes(ids)


@settings(deadline=None)
@given(st.data())
def test_embedded_tokenizer_pieces_join_to_its_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """The ids are random, and some are special."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=20))
    assert "".join(pieces(ids, tokenizer.decode)) == tokenizer.decode(ids)


def test_invalid_bytes_cost_constant_time_per_token() -> None:
    """Ids of complete text are not decoded again."""
    longest = 0

    def watched(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return of_bytes(ids)

    pieces([0xE4, 0xBD] * 500, watched)
    pieces([0xFF] * 500, watched)
    pieces([0x20] * 500, watched)
    assert longest < 20


def stopped(text: str, stops: Sequence[str]) -> tuple[str, str]:
    """Return the text before the stop string that is complete first (of two, the longer), and that string."""
    ends = sorted((at + len(stop), at, stop) for stop in stops if (at := text.find(stop)) >= 0)
    return (text[: ends[0][1]], ends[0][2]) if ends else (text, "")


def cut(text: str, sizes: Sequence[int]) -> list[str]:
    """Cut a text into tokens of these sizes; the rest is the last token."""
    tokens = []
    for size in sizes:
        tokens.append(text[:size])
        text = text[size:]
    return [token for token in [*tokens, text] if token]


@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 4), max_size=12),
)
def test_stop_string_ends_text_across_tokens(text: str, stops: list[str], sizes: list[int]) -> None:
    """No part of a stop string is sent. Every id with text before it is sent once, in order, when its text is."""
    tokens = cut(text, sizes)
    output = Output(lambda ids: "".join(tokens[one] for one in ids), tuple(stops))
    sent, ids = "", []
    for number in range(len(tokens)):
        piece = output.add(Token(number))
        sent += piece.text
        ids += [token.id for token in piece.tokens]
        assert stopped(text, stops)[0].startswith(sent)
        if output.stop_match:
            break
        assert len("".join(tokens[: len(ids)])) <= len(sent)
    piece = output.finish()
    sent += piece.text
    ids += [token.id for token in piece.tokens]
    assert (sent, output.stop_match) == stopped(text, stops)
    assert ids == list(range(len(ids)))
    kept = [n for n in range(len(tokens)) if len("".join(tokens[:n])) < len(sent)]
    assert ids == (kept if output.stop_match else list(range(len(tokens))))


def test_token_that_a_stop_string_cuts_is_sent() -> None:
    """Once, also where its text was sent before the stop string was complete. A token without kept text is not."""
    for texts in (["a.", "b"], ["a.b"]):
        output = Output(lambda ids, texts=texts: "".join(texts[one] for one in ids), (".b",))  # type: ignore[misc]
        pieces = [output.add(Token(one)) for one in range(len(texts))]
        assert "".join(piece.text for piece in pieces) == "a"
        assert [token.id for piece in pieces for token in piece.tokens] == [0]
        assert (output.stop_match, bool(output.finish())) == (".b", False)


def test_partial_stop_string_is_sent_at_the_end() -> None:
    """The beginning of a stop string is sent if the rest never comes."""
    output = Output(of_bytes, ("xyz",))
    assert output.add(Token(ord("a"))).text == "a"
    assert not output.add(Token(ord("x")))
    piece = output.finish()
    assert (piece.text, [token.id for token in piece.tokens]) == ("x", [ord("x")])


def test_stop_string_completed_by_the_end_is_found() -> None:
    """A replacement character for half a character can complete a stop string."""
    output = Output(of_bytes, ("a\ufffd",))
    assert not output.add(Token(ord("a")))
    assert not output.add(Token(0xE4))
    assert not output.finish()
    assert output.stop_match == "a\ufffd"


def test_special_tokens_have_ids_and_no_text() -> None:
    """Ids without text are sent with the next text, or at the end."""
    output = Output(without_specials)
    assert not output.add(Token(1))
    piece = output.add(Token(ord("a")))
    assert (piece.text, [token.id for token in piece.tokens]) == ("a", [1, ord("a")])
    assert not output.add(Token(2))
    assert [token.id for token in output.finish().tokens] == [2]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_stop_string_in_a_real_answer_is_not_sent(harness: Harness, size: int) -> None:
    """The last token can complete a stop string as well. All of the text has scores, and no token after it has."""
    prompt = "The code of the blue box is 74. The"
    plain = harness.run(generate(prompt, max_tokens=12, stop=pb.Stop(ignore_eos=True)))
    stop = plain.text[-size:]
    answer = harness.run(generate(prompt, max_tokens=12, stop=pb.Stop(strings=[stop], ignore_eos=True), top_logprobs=0))
    assert (answer.text, answer.finished.stop_match) == stopped(plain.text, [stop])
    assert answer.finished.reason == pb.FINISH_REASON_STOP
    texts = [score.text for score in answer.logprobs]
    assert "".join(texts).startswith(answer.text)
    assert answer.text.startswith("".join(texts[:-1]))
