"""Conversations encoded in segments: the same ids and places as in one piece, and each turn encodes what is new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from daemon.engine.prompt import segments
from daemon.engine.prompt.places import TokenIds, starts_of
from daemon.engine.prompt.segments import Segments, marks_of
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Harness

TEXT = [
    "the end is the beginning",
    "a 12 1234 b\n\n  c",
    "e\u0301 \u00e9 \U0001f980",
    "<|in|> im_start user|>",
    "Hi Hi",
]
SPLIT = Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
MARKS = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "</s>", "\n\n", "<|", "aa"]
STRIPPING = AddedToken("<right>", rstrip=True, normalized=False), AddedToken("<left>", lstrip=True, normalized=False)
NORMALIZED = AddedToken("Hi", normalized=True)
PIECES = [
    *MARKS,
    "<right>",
    "<left>",
    "Hi",
    "<|im",
    "_end|>",
    "|>",
    "[",
    "<",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "the",
    " end",
]
PIECES += ["aaa", "12", "345", "e\u0301", "\U0001f980", "\u00e9", "\u2581", "a", "HI", "user\n"]


def byte_level(prefix: bool) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(SPLIT, "isolated"), last])
    return trained(made, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


def metaspace(scheme: str, model: Any, trainer: Any) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return trained(made, trainer)


def prepending() -> tokenizers.Tokenizer:
    """Return a tokenizer like that of Llama 2, which has no pre-tokenizer."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return trained(made, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"]))


def word_pieces() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return trained(made, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["<unk>"]))


def trained(made: tokenizers.Tokenizer, trainer: Any) -> tokenizers.Tokenizer:
    made.train_from_iterator(TEXT, trainer)
    made.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    made.add_tokens([*STRIPPING, NORMALIZED])
    return made


def bpe() -> Any:
    return trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"])


KINDS = {
    "bytes": byte_level(prefix=False),
    "bytes behind a space": byte_level(prefix=True),
    "metaspace at first": metaspace("first", models.BPE(unk_token="<unk>"), bpe()),
    "metaspace always": metaspace("always", models.BPE(unk_token="<unk>"), bpe()),
    "metaspace never": metaspace("never", models.BPE(unk_token="<unk>"), bpe()),
    "unigram": metaspace(
        "always", models.Unigram(), trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>")
    ),
    "prepended": prepending(),
    "word pieces": word_pieces(),
}


def encoder(backend: tokenizers.Tokenizer) -> Callable[[list[str]], list[TokenIds]]:
    """Return what encodes texts as a whole."""

    def encode(texts: list[str]) -> list[TokenIds]:
        found = []
        for encoding in backend.encode_batch(texts, add_special_tokens=False):
            found.append(TokenIds(encoding.ids))
            found[-1].starts = starts_of(encoding.offsets)
        return found

    return encode


def same(one: TokenIds, other: TokenIds) -> bool:
    assert one.starts is not None
    assert other.starts is not None
    return one == other and [*one.starts] == [*other.starts]


@pytest.mark.parametrize("kind", KINDS)
def test_all_plain_marks_cut(kind: str) -> None:
    marks = marks_of(KINDS[kind], "".join(PIECES))

    normalized = set() if KINDS[kind].normalizer else {"Hi"}
    assert {*MARKS, "<right>", *normalized} - {"<|"} == {*marks}  # another begins like that, and is longer
    assert Segments(encoder(KINDS[kind]), marks).agrees()


@pytest.mark.parametrize("kind", KINDS)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=24), at=st.integers(0, 24))
def test_segments_are_the_text(kind: str, pieces: list[str], at: int) -> None:
    """Both when none of them is known, and when those of a conversation before it are."""
    backend, text = KINDS[kind], "".join(pieces)
    cut = Segments(encoder(backend), marks_of(backend, "".join(MARKS)))

    (whole,) = encoder(backend)([text])
    assert same(cut.encode(text), whole)
    cut.encode("".join(pieces[:at]) + " the end")
    assert same(cut.encode(text), whole)


NOT_MARKS = {
    "is part of another": ([AddedToken("<a>", normalized=False), AddedToken("<<a>>", normalized=False)], "x<<a>>"),
    "begins within another": ([AddedToken("ab", normalized=False), AddedToken("xa", normalized=False)], "xab"),
    "is looked for after the normalizer": ([AddedToken("ﬁ", normalized=True), AddedToken("xfi")], "xﬁ"),
    "takes whitespace before it along": ([AddedToken("<a>", lstrip=True, normalized=False)], "x <a>"),
    "depends on what is beside it": ([AddedToken("ab", single_word=True, normalized=False)], "xab"),
}


@pytest.mark.parametrize("why", NOT_MARKS)
def test_a_token_that_would_change_the_text_is_no_mark(why: str) -> None:
    added, text = NOT_MARKS[why]
    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Split("", "isolated")
    backend.add_tokens(added)

    mark = added[0].content
    assert mark not in marks_of(backend, text)
    assert not same(Segments(encoder(backend), [mark]).encode(text), encoder(backend)([text])[0])


WITHOUT_NORMALIZER = {
    "that hold it": [AddedToken("ab", normalized=True), AddedToken("xab", normalized=True)],
    "that it ends within": [AddedToken("xa", normalized=True), AddedToken("ab", normalized=False)],
    "that it holds": [AddedToken("xab", normalized=True), AddedToken("a", normalized=False)],
}


def test_a_token_for_normalized_text_is_a_mark_where_nothing_normalizes() -> None:
    backend = tokenizers.Tokenizer.from_str(KINDS["bytes"].to_str())
    assert "Hi" in marks_of(backend, "Hi")

    backend.normalizer = normalizers.Sequence([])
    assert "Hi" in marks_of(backend, "Hi")

    backend.normalizer = normalizers.Lowercase()
    assert "Hi" not in marks_of(backend, "Hi")


@pytest.mark.parametrize("why", WITHOUT_NORMALIZER)
def test_such_a_token_is_no_mark_beside_others(why: str) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    backend.add_tokens(WITHOUT_NORMALIZER[why])

    mark = WITHOUT_NORMALIZER[why][0].content
    assert mark not in marks_of(backend, "xab")
    assert not same(Segments(encoder(backend), [mark]).encode("yxab"), encoder(backend)(["yxab"])[0])


def test_tokens_that_the_template_does_not_write_are_no_marks() -> None:
    assert marks_of(KINDS["bytes"], "{{ '<|im_start|>' + message.content }}") == ["<|im_start|>"]


def test_special_tokens_that_are_read_as_text_are_no_marks() -> None:
    backend = tokenizers.Tokenizer.from_str(KINDS["bytes"].to_str())
    backend.encode_special_tokens = True

    assert marks_of(backend, "".join(MARKS)) == []


def test_a_turn_encodes_what_is_new() -> None:
    encode, encoded = encoder(KINDS["bytes"]), []

    def counted(texts: list[str]) -> list[TokenIds]:
        encoded.extend(texts)
        return encode(texts)

    conversation = "<|im_start|>user\nthe end<|im_end|>\n<|im_start|>user\nthe end<|im_end|>\n"
    cut = Segments(counted, MARKS)
    cut.encode(conversation)
    assert encoded == ["<|im_start|>user\nthe end", "<|im_end|>\n"]

    cut.encode(conversation + "<|im_start|>user\nis the beginning")
    cut.encode("<|im_start|>other" + conversation)
    assert encoded[2:] == ["<|im_start|>user\nis the beginning", "<|im_start|>other"]


def test_segments_that_were_used_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, encoded = encoder(KINDS["bytes"]), []

    def counted(texts: list[str]) -> list[TokenIds]:
        encoded.extend(texts)
        return encode(texts)

    monkeypatch.setattr(segments, "MOST_CHARACTERS", 20)
    cut = Segments(counted, MARKS)
    for text in ("</s>one", "</s>two", "</s>one", "</s>three", "</s>one", "</s>two", "</s>" + "long " * 9):
        assert same(cut.encode(text), encode([text])[0])
    assert encoded == ["</s>one", "</s>two", "</s>three", "</s>two", "</s>" + "long " * 9]


def test_segments_are_known_under_their_salt_alone() -> None:
    encode, encoded = encoder(KINDS["bytes"]), []

    def counted(texts: list[str]) -> list[TokenIds]:
        encoded.append(texts)
        return encode(texts)

    cut = Segments(counted, MARKS)
    cut.encode("</s>one", "a", stores=False)
    cut.encode("</s>one", "a")
    cut.encode("</s>one", "b")
    cut.encode("</s>one")
    cut.encode("</s>one", "a")
    assert encoded == [["</s>one"]] * 4

    cut.forget()
    cut.encode("</s>one", "a")
    assert len(encoded) == 5


@pytest.fixture(name="harness")
def _harness(engine: Callable[..., Harness]) -> Harness:
    """Return an engine that reads the tokenizer beside the weights."""
    return engine(warms=True)


@pytest.fixture(name="encoded")
def _encoded(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the segments that an engine encodes from now on."""
    harness.run(pb.GetOrLoadRequest(model="embedded"))
    harness.until(lambda: bool(harness.engine._services.tokenizers._loaded))
    (tokenizer,) = harness.engine._services.tokenizers._loaded.values()
    encoded: list[str] = []
    encode = tokenizer._encoded

    def counted(texts: list[str], *, special: bool = False) -> list[TokenIds]:
        encoded.extend(texts)
        return encode(texts, special=special)

    tokenizer.warm_up()
    monkeypatch.setattr(tokenizer, "_encoded", counted)
    monkeypatch.setattr(tokenizer._segments, "_encode", counted)
    return encoded


def said(turns: int, **cache: Any) -> pb.GenerateRequest:
    """Return a conversation of so many turns."""
    messages = [pb.ChatMessage(role="user", content=f"Turn {turn}. " + "Tell me more. " * 20) for turn in range(turns)]
    options = pb.CacheOptions(**cache)
    return pb.GenerateRequest(model="embedded", chat=pb.Chat(messages=messages), max_tokens=1, cache=options)


def test_an_engine_encodes_what_is_new_in_a_turn(harness: Harness, encoded: list[str]) -> None:
    harness.run(said(2))
    begun = len("".join(encoded))
    encoded.clear()

    again = harness.run(said(3))
    assert again.cached > 0
    assert 0 < len("".join(encoded)) < begun
    encoded.clear()

    cold = harness.run(said(3, mode=pb.CACHE_MODE_BYPASS))
    assert len("".join(encoded)) > begun
    assert cold.content == again.content
    assert cold.finished.usage.prompt_tokens == again.finished.usage.prompt_tokens


NOT_REUSED = {
    "another salt": (said(2, salt="a"), said(2, salt="b")),
    "read only before": (said(2, mode=pb.CACHE_MODE_READ_ONLY), said(2)),
    "invalidated": (said(2), said(2)),
}


@pytest.mark.parametrize("why", NOT_REUSED)
def test_an_engine_encodes_all_turns_where_it_reuses_none(harness: Harness, encoded: list[str], why: str) -> None:
    before, after = NOT_REUSED[why]
    harness.run(before)
    if why == "invalidated":
        harness.run(pb.InvalidateRequest(all=pb.AllTarget(prefixes=True)))
    first = list(encoded)
    encoded.clear()

    harness.run(after)
    assert encoded == first
