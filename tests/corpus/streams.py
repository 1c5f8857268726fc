"""What a tokenizer must do with a stream of ids: its pieces, joined, are the text of all ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daemon.engine.output.detokenizer import Output, Token
from daemon.engine.prompt.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


def streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return the pieces that the engine sends for ids that come one by one, and the last piece."""
    output = Output(tokenizer.decode)
    pieces = [output.add(Token(one)).text for one in ids]
    return [*pieces, output.finish().text]


def whole(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of ids as the library decodes them, without special tokens."""
    library = tokenizer._wrapper._tokenizer
    return str(library.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def mistakes(tokenizer: Tokenizer, streams: Iterable[Sequence[int]]) -> list[str]:
    """
    Return what is wrong with streams: one line each.

    Bytes that are no text and special tokens are compared with the engine's own decoding alone. Libraries differ in how
    many replacement characters they write for such bytes, and some special tokens are shown.
    """
    special = {id_ for id_, token in tokenizer._wrapper.added_tokens_decoder.items() if token.special}
    special |= tokenizer.eos_ids
    wrong = []
    for ids in streams:
        joined = "".join(streamed(tokenizer, ids))
        expected = whole(tokenizer, ids)
        at_once = tokenizer.decode(ids)
        comparable = REPLACEMENT not in expected and special.isdisjoint(ids)
        if joined != at_once or (comparable and joined != expected):
            wrong.append(f"{list(ids)}: streamed {joined!r}, at once {at_once!r}, the library {expected!r}")
    return wrong
