"""The text of tokens: for each kind of decoder, streamed text is the text of the whole, and that of the library."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import NewlineTokenizer
from tokenizers import decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from daemon.engine.output.detokenizer import Decode, Output, Token, streaming
from daemon.engine.output.token_text import Steps, TokenText, token_text

SPECIALS = ["<unk>", "</s>", "[THINK]", "<｜marké｜>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁▁", "o", "k", "é", "ok", "▁ok", "▁hello", "漢", "🙂", "\n", " ", "�", "x▁y", "<0xZZ>"]
"""Words as SentencePiece writes them, among them some that look like bytes."""


def fast(words: Sequence[str], decoder: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer as checkpoints have it: ids 0 to 3 are special, and 1 ends."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys([*SPECIALS, *words]))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def sentencepiece(*last: Any) -> decoders.Decoder:
    """Return the decoder of a SentencePiece model that falls back to bytes."""
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])


def byte_level() -> list[str]:
    """Return the 256 tokens of single bytes, and some of several, as tekken and GPT-2 write them."""
    return [*sorted(ByteLevel.alphabet()), "Ġok", "Ã©", "æ¼", "ðŁĻ", "ĠĠ", "Ċ"]


KINDS = {
    "byte fallback, leading space kept": fast([*BYTES, *WORDS], sentencepiece()),
    "byte fallback, leading space stripped": fast([*BYTES, *WORDS], sentencepiece(decoders.Strip(" ", 1, 0))),
    "metaspace": fast(WORDS, decoders.Metaspace()),
    "metaspace without a leading space": fast(WORDS, decoders.Metaspace(prepend_scheme="never")),
    "metaspace and byte fallback": fast(
        [*BYTES, *WORDS], decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    ),
    "byte level": fast(byte_level(), decoders.ByteLevel()),
    "byte level in a sequence": fast(byte_level(), decoders.Sequence([decoders.ByteLevel()])),
}
OTHERS = {
    "word pieces": fast(["a", "##b", "##c", "d", "é"], decoders.WordPiece(cleanup=False)),
    "no decoder": fast(["a", "b", "é"], None),
    "suffixes": fast(["a</w>", "b", "c</w>"], decoders.BPEDecoder()),
}


def text_of(tokenizer: PreTrainedTokenizerFast, dropped: Sequence[int] = ()) -> TokenText:
    """Return the text of a tokenizer whose decoder is known."""
    text = token_text(tokenizer)
    assert text is not None
    return text.without(dropped)


def streamed(decode: Decode, ids: Sequence[int]) -> str:
    """Return the text that is shown for ids that come one by one."""
    stream = streaming(decode)
    return "".join([*map(stream.add, ids), stream.flush()])


def by_library(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], *, skip: bool = False) -> str:
    """Return the text of ids by transformers; characters that are lone bytes stand in for bytes that are no text."""
    return str(tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))


def repaired(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], *, skip: bool) -> str:
    """
    Return the text of ids by the library, without its fault: a lone byte leaves the characters around it whole.

    Each run of bytes is decoded by itself, and given to the library as one token.
    """
    tokens = [token for token in tokenizer.convert_ids_to_tokens(list(ids)) if not (skip and token in SPECIALS)]
    given: list[str] = []
    for are_bytes, run in groupby(tokens, lambda token: token in BYTES):
        whole = list(run)
        given += (
            [bytes.fromhex("".join(token[3:5] for token in whole)).decode("utf-8", "replace")] if are_bytes else whole
        )
    return str(tokenizer.backend_tokenizer.decoder.decode(given))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_streamed_text_equals_the_whole(kind: str, data: st.DataObject, skip: bool) -> None:
    """Ids are random: special ones, lone bytes, and some that the vocabulary lacks."""
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 2), max_size=12))
    decode = text_of(tokenizer, range(len(SPECIALS)) if skip else ())
    whole = decode(ids)
    assert streamed(decode, ids) == whole
    known = [id_ for id_ in ids if id_ < len(tokenizer)]
    if "fallback" in kind:
        assert whole == repaired(tokenizer, known, skip=skip)
    else:
        assert whole == by_library(tokenizer, known, skip=skip)


@pytest.mark.parametrize("kind", OTHERS)
@settings(deadline=None)
@given(data=st.data())
def test_unknown_decoders_stream_the_whole(kind: str, data: st.DataObject) -> None:
    tokenizer = OTHERS[kind]
    assert token_text(tokenizer) is None
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))

    def decode(some: Sequence[int]) -> str:
        return by_library(tokenizer, some)

    assert streamed(decode, ids) == decode(ids)


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
@settings(deadline=None)
@given(data=st.data())
def test_text_that_goes_on_keeps_its_spaces(kind: str, data: st.DataObject) -> None:
    """A decoder that leaves out a space at the beginning of a text leaves out none behind other ids."""
    tokenizer = {**KINDS, **OTHERS}[kind]
    whole_words = [id_ for id_ in range(4, len(tokenizer)) if "\ufffd" not in by_library(tokenizer, [id_])]
    several = st.lists(st.sampled_from(whole_words), max_size=6)
    before, ids = data.draw(several), data.draw(several)
    known = token_text(tokenizer)
    decode: Decode = known if known is not None else lambda some: by_library(tokenizer, some)
    stream = streaming(decode, before)
    shown = "".join([*map(stream.add, ids), stream.flush()])
    assert decode(before) + shown == decode([*before, *ids])


def test_absent_ids_begin_no_text() -> None:
    """Such as a BOS: what follows it alone is the beginning of a text."""
    tokenizer = KINDS["byte fallback, leading space stripped"]
    end, hello = ids_of(tokenizer, "</s>", "▁hello")
    decode = text_of(tokenizer, [end])
    assert streaming(decode, [end]).add(hello) == "hello"
    assert streaming(decode, [end, hello, end]).add(hello) == " hello"


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_comes_back_from_its_bytes(text: str) -> None:
    """Each character is as many tokens as it has bytes."""
    decode = text_of(KINDS["byte fallback, leading space kept"])
    stream = decode.stream()
    ids = ids_of(KINDS["byte fallback, leading space kept"], *(f"<0x{byte:02X}>" for byte in text.encode()))
    shown = [*map(stream.add, ids), stream.flush()]
    assert "".join(shown) == text
    assert all(piece in text and len(piece) <= 1 for piece in shown)


def ids_of(tokenizer: PreTrainedTokenizerFast, *words: str) -> list[int]:
    """Return the ids of tokens."""
    return [int(tokenizer.convert_tokens_to_ids(word)) for word in words]


def test_byte_fallback_cut() -> None:
    """A character that is cut at the end is one replacement character, and the character before it stays whole."""
    tokenizer = KINDS["byte fallback, leading space kept"]
    ids = ids_of(tokenizer, "o", "k", "<0xC3>", "<0xA9>", "<0xC3>")
    assert by_library(tokenizer, ids) == "ok\ufffd\ufffd\ufffd"
    assert text_of(tokenizer)(ids) == streamed(text_of(tokenizer), ids) == "oké\ufffd"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (b"\xf0\x9f\x99", "\ufffd"),
        (b"\xf0\x9f\x99o", "\ufffdo"),
        (b"\xff\xff", "\ufffd\ufffd"),
        (b"\xe6\xbc\xc3", "\ufffd\ufffd"),
    ],
)
def test_a_part_of_a_character_is_one_mark(written: bytes, text: str) -> None:
    """Unicode calls it the maximal subpart."""
    tokenizer = KINDS["byte fallback, leading space kept"]
    assert streamed(text_of(tokenizer), ids_of(tokenizer, *(f"<0x{byte:02X}>" for byte in written))) == text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "level" not in kind])
def test_dropped_tokens_take_no_space_along(kind: str) -> None:
    """Only the first token with text loses its space, however many without text come before and after it."""
    tokenizer = KINDS[kind]
    ids = ids_of(tokenizer, "</s>", "▁hello", "</s>", "</s>", "▁ok", "</s>", "▁", "</s>", "▁ok")
    kept = "" if "stripped" in kind or kind in ("metaspace", "metaspace and byte fallback") else " "
    assert streamed(text_of(tokenizer, [1]), ids) == f"{kept}hello ok  ok"


def test_invisible_tokens_leave_spaces_to_others() -> None:
    """The same with a decoder of which nothing is known."""
    tokenizer = KINDS["metaspace"]

    def decode(ids: Sequence[int]) -> str:
        return by_library(tokenizer, ids, skip=True)

    ids = ids_of(tokenizer, "</s>", "▁hello", "</s>", "▁ok", "▁", "▁ok")
    assert streamed(decode, ids) == decode(ids) == "hello ok  ok"


def test_tokens_come_with_their_text() -> None:
    """A token of a character in pieces is sent with the piece that completes it."""
    tokenizer = KINDS["byte fallback, leading space kept"]
    output = Output(text_of(tokenizer))
    sent = [output.add(Token(id_)) for id_ in ids_of(tokenizer, "o", "<0xC3>", "<0xA9>")]
    assert [(piece.text, len(piece.tokens)) for piece in sent] == [("o", 1), ("", 0), ("é", 2)]


def test_streaming_asks_for_each_token_once() -> None:
    """The time is linear: no id is decoded again, however long a text without white space or valid characters is."""
    asked: list[int] = []

    def token(id_: int) -> str:
        asked.append(id_)
        return f"<0x{id_ % 256:02X}>"

    streamed(TokenText(token, Steps(byte_fallback=True)), list(range(10_000)))
    assert len(asked) == 10_000


def test_tokenizers_with_code_of_their_own_are_unknown() -> None:
    """`NewlineTokenizer` changes the text after its decoder."""
    backend = KINDS["byte level"].backend_tokenizer
    assert token_text(NewlineTokenizer(tokenizer_object=backend)) is None
