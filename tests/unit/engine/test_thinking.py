"""The token mask of a model that reasons before an answer in a form: only the answer has the form."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from daemon.engine.execution.sampling import Draw, Sampled
from daemon.engine.output.chat_markup import Thinking
from daemon.engine.structured_output.grammar import ResponseFormat, of_response, up_to
from daemon.engine.structured_output.matcher import GrammarMatcher, vocabulary
from daemon.engine.structured_output.token_mask import TokenMask

VOCAB, EOS = 64, 2
OPEN, ANALYSIS, END, START, FINAL, BRACE = 10, 11, 12, 13, 14, 20


class Form:
    """A form that allows one token, and records the tokens that it was given."""

    field = "response_format"

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed(self) -> bytes:
        """Return a bit for each token."""
        return (1 << BRACE).to_bytes(VOCAB // 8, "little")

    def take(self, token: int) -> None:
        """Record a token."""
        self.taken.append(token)


def allowed(constraint: TokenMask, last: int | None) -> list[int]:
    """Return the tokens that may come next."""
    mask = constraint.mask(None if last is None else Sampled(Draw(mx.array([last]), mx.zeros(1))))
    return [token for token, may in enumerate(mask.tolist()) if may]  # type: ignore[arg-type]


def after(
    form: Form, thinking: Thinking | None, tokens: Sequence[int], header: tuple[int, ...] = (FINAL,)
) -> list[int]:
    """Return the tokens that may follow these tokens."""
    constraint = TokenMask(form, VOCAB, [EOS], thinking, header)  # type: ignore[arg-type]
    may = allowed(constraint, None)
    for token in tokens:
        assert token in may
        may = allowed(constraint, token)
    return may


FREE = [token for token in range(VOCAB) if token != EOS]
HEADERS = Thinking((OPEN, ANALYSIS), (END,), opened=False, turn=(START,), barred=(OPEN, START))
MARKS = Thinking((OPEN,), (END,), opened=False)


def test_answer_may_open_with_reasoning_or_grammar() -> None:
    assert after(Form(), HEADERS, [], header=()) == sorted([OPEN, BRACE])


def test_answer_may_open_with_reasoning_or_header() -> None:
    assert after(Form(), HEADERS, []) == sorted([OPEN, FINAL])
    assert after(Form(), HEADERS, [FINAL]) == [BRACE]


def test_answer_without_reasoning_opens_by_header() -> None:
    assert after(Form(), None, []) == [FINAL]
    assert after(Form(), None, [FINAL]) == [BRACE]


def test_reasoning_wins_where_both_openings_agree() -> None:
    header = (OPEN, FINAL)
    assert after(Form(), HEADERS, [], header) == [OPEN]
    assert after(Form(), HEADERS, [OPEN], header) == [ANALYSIS]
    assert after(Form(), HEADERS, [OPEN, ANALYSIS, 30, END, START, OPEN, FINAL], header) == [BRACE]


def test_multi_token_reasoning_opening_is_completed() -> None:
    assert after(Form(), HEADERS, [OPEN]) == [ANALYSIS]
    assert after(Form(), Thinking((OPEN, ANALYSIS), (END,), opened=False), [OPEN, ANALYSIS]) == FREE


def test_reasoning_ends_only_with_its_end_mark() -> None:
    """Another mark would begin a part of the answer without the form."""
    assert after(Form(), HEADERS, [OPEN, ANALYSIS, 30]) == [token for token in FREE if token not in (OPEN, START)]


def test_answer_header_is_forced_after_reasoning() -> None:
    form = Form()
    reasoned = [OPEN, ANALYSIS, 30, 31, END]
    assert after(form, HEADERS, reasoned) == [START]
    assert after(form, HEADERS, [*reasoned, START]) == [FINAL]
    assert after(form, HEADERS, [*reasoned, START, FINAL]) == [BRACE]
    assert form.taken == []
    after(form, HEADERS, [*reasoned, START, FINAL, BRACE])
    assert form.taken == [BRACE]


def test_grammar_follows_reasoning_without_a_header() -> None:
    assert after(Form(), MARKS, [OPEN, 30, END], header=()) == [BRACE]


def test_token_mask_is_as_wide_as_the_logits() -> None:
    assert TokenMask(Form(), VOCAB, [EOS], MARKS).mask(None).shape == (VOCAB,)  # type: ignore[arg-type]
    assert TokenMask(Form(), VOCAB, [EOS]).mask(None).dtype == mx.bool_  # type: ignore[arg-type]


def joining(*words: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of letters that stand for bytes, and of words of two letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: number for number, word in enumerate(["<unk>", "</s>", *alphabet, *words])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[(word[0], word[1]) for word in words]))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def test_reasoning_ends_with_its_mark_in_any_tokens() -> None:
    """A mark that is no token can be written in several ways. Nothing comes in one token with its last character."""
    tokenizer = joining("th", "><")
    tokens, mark = vocabulary(tokenizer, [1], "response_format"), "</think>"
    form = GrammarMatcher("response_format", of_response(ResponseFormat("regex", r"\{\}")), tokens)
    thinking = Thinking((0,), tuple(tokenizer.encode(mark, add_special_tokens=False)), opened=True)
    ending = GrammarMatcher("response_format", up_to(mark), tokens)
    constraint = TokenMask(form, len(tokenizer), [1], thinking, ending=ending)
    letters = tokenizer.convert_tokens_to_ids([*"so</thinking><", "><", *mark])
    may = allowed(constraint, None)
    for letter in letters:
        assert letter in may
        before, may = may, allowed(constraint, letter)
    assert tokenizer.convert_tokens_to_ids("><") not in before
    assert [tokenizer.decode([token]) for token in may] == ["{"]
