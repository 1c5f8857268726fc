"""
Encodes a text in segments and remembers their ids, so that each turn of a conversation encodes what is new in it.

    <|im_start|>system\\nBe brief.<|im_end|>\\n<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
    |----------- segment -------||--- segment --||-- segment ----||- segment -||------ segment -----|

A fast tokenizer finds its added tokens in a text first. It encodes what lies between two of them on its own, and a
segment begins with one. So the ids of a text are those of its segments, one after the other, if

* the added token is found wherever its characters are: no other one can take some of them;
* it is looked for in the text as it is, and not in what a normalizer makes of that (`normalized`);
* it takes no whitespace before it along (`lstrip`);
* no added token depends on the characters beside it (`single_word`).

`marks_of` returns the added tokens of which that is true. Source: `AddedVocabulary` of the library tokenizers, 0.23.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from daemon.cache.lru_dict import LruDict
from daemon.engine.prompt.places import TokenIds

MOST_CHARACTERS = 2_000_000
"""Of the segments that are remembered, about half a million tokens: 6 MB of text, ids and places."""

_SAMPLE = ("", " a", "a\n", "\n\n\u00e9 1")
"""Texts around the marks with which `Segments.agrees` compares."""


class _Segment(NamedTuple):
    """
    What a segment was encoded to.

    Attributes:
        ids: Its ids.
        starts: The character of the segment at which each begins; see `TokenIds`. Shape [ids].
    """

    ids: array[int]
    starts: np.ndarray[Any, np.dtype[np.intc]]

    @classmethod
    def of(cls, ids: TokenIds) -> _Segment:
        """Return it, in as little memory as it needs."""
        assert ids.starts is not None
        return cls(array("i", ids), np.array(ids.starts, np.intc))


Encode = Callable[[list[str]], list[TokenIds]]
"""Encodes texts, each on its own, without special tokens before or behind them; tells where tokens begin."""


class Segments:
    """
    The segments that were encoded last. One thread at a time.

    Args:
        encode: Encodes segments.
        marks: Added tokens of the tokenizer, as `marks_of` returns them; at least one.

    Attributes:
        marks: The same.
    """

    def __init__(self, encode: Encode, marks: Sequence[str]) -> None:
        self._encode = encode
        self.marks = marks
        self._mark = re.compile("|".join(map(re.escape, marks)))
        self._known = self._none()

    def encode(self, text: str, salt: str = "", *, stores: bool = True) -> TokenIds:
        """
        Return the ids of a text, and where its tokens begin; encodes only the segments that are not known.

        Args:
            text: The text.
            salt: Segments are known only to texts of the same salt: how long it takes tells nothing of others.
            stores: Whether its new segments are remembered.
        """
        texts, known = self._split(text), self._known
        found = {part: segment for part in texts if (segment := known.get((salt, part))) is not None}
        new = list(dict.fromkeys(part for part in texts if part not in found))
        for part, encoded in zip(new, self._encode(new) if new else (), strict=True):
            found[part] = segment = _Segment.of(encoded)
            if stores:
                known.put((salt, part), segment)
        ids, starts, begin = TokenIds(), array("i"), 0
        for part in texts:
            segment = found[part]
            ids.extend(segment.ids)
            starts.frombytes((segment.starts + begin).tobytes())
            begin += len(part)
        ids.starts = starts
        return ids

    def forget(self) -> None:
        """Forget all segments, those of a text that is being encoded included; any thread."""
        self._known = self._none()

    def agrees(self) -> bool:
        """Whether a text with all marks has the same ids and places as a whole."""
        text = "".join(f"{around}{mark}{around}" for mark in self.marks for around in _SAMPLE)
        (whole,), parts = self._encode([text]), self.encode(text, stores=False)
        return whole == parts and list(whole.starts or ()) == list(parts.starts or ())

    @staticmethod
    def _none() -> LruDict[tuple[str, str], _Segment]:
        return LruDict(MOST_CHARACTERS, weigh=lambda key, _: len(key[1]))

    def _split(self, text: str) -> list[str]:
        cuts = [0, *(match.start() for match in self._mark.finditer(text) if match.start()), len(text)]
        return [text[begin:end] for begin, end in pairwise(cuts)]


def marks_of(backend: Any, template: str) -> list[str]:
    """
    Return the added tokens that a template writes and at which a text can be cut; none if that is not certain.

    Args:
        backend: A `tokenizers.Tokenizer`.
        template: The chat template. A vocabulary may have thousands of added tokens, and a search takes time for each.
    """
    added = [token for token in backend.get_added_tokens_decoder().values() if token.content]
    if backend.encode_special_tokens or any(token.single_word for token in added):
        return []
    same_text = _changes_nothing(backend.normalizer)
    usable = [token for token in added if token.content in template and not token.lstrip]
    usable = [token for token in usable if same_text or not token.normalized]
    return [token.content for token in usable if not any(_takes(other, token) for other in added)]


def _changes_nothing(normalizer: Any) -> bool:
    """Return whether a normalizer leaves every text as it is: it is missing, or a sequence of none."""
    if normalizer is None:
        return True
    described = json.loads(normalizer.__getstate__())
    return bool(described["type"] == "Sequence" and not described["normalizers"])


def _takes(other: Any, mark: Any) -> bool:
    """
    Return whether another added token can take characters of a mark.

    Those that are looked for in the text as it is are found first. Of two that are looked for at a time, the one that
    begins first is found; of those that begin at the same character, the longest.
    """
    if other.content == mark.content or (other.normalized and not mark.normalized):
        return False
    later = mark.normalized and not other.normalized
    return _reaches(other.content, mark.content) or (later and _reaches(mark.content, other.content))


def _reaches(one: str, other: str) -> bool:
    """Return whether one text can begin before the other, or with it, and end within it or behind it."""
    return other in one or any(one.endswith(other[:length]) for length in range(1, min(len(one), len(other))))
