"""What guesses from n-grams ask of a step, most of which have none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from daemon.engine.execution.ngram_guesses import NgramGuesses
from daemon.engine.execution.request import Speculation
from daemon.engine.execution.speculation import Guesser
from daemon.engine.scheduling.governor import Check, Governor, Source
from daemon.engine.scheduling.ngrams import LONG, NgramIndex
from daemon.kv.mlx.ahead import Ahead


@pytest.mark.parametrize(("stop_ids", "guessed"), [({4}, []), ({9}, [5, 1, 2])])
def test_nothing_is_guessed_behind_a_stop_token(stop_ids: set[int], guessed: list[int]) -> None:
    """The device may still compute it. A state that has seen more cannot be stored at the end of the answer."""
    options = SimpleNamespace(speculation=Speculation.NGRAM, stop_ids=stop_ids)
    sequence: Any = SimpleNamespace(prompt=[1, 2, 3, 4, 5, 1, 2, 3], generated=[], request=options)
    source = NgramGuesses(sequence, Governor())
    assert source.ready()
    assert source.guess(lambda: 4, 3, known=False)[1] == guessed


def parked() -> Governor:
    """Return a governor that has found that n-grams lose, and may lose nothing more for some steps."""
    governor = Governor()
    for _ in range(200):
        governor.plain(1.0)
    for source in (Source(Speculation.NGRAM, LONG), Source(Speculation.NGRAM, "short")):
        while not governor.parked(source):
            governor.guessed(3.0, [Check(source, 2, 0)], 1)
    return governor


def test_parked_ngrams_are_neither_indexed_nor_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at a text that repeats itself takes longer than a guess may lose. What was not indexed is made up for."""
    options = SimpleNamespace(speculation=Speculation.AUTO, stop_ids=set())
    sequence: Any = SimpleNamespace(prompt=[1, 2, 3] * 2, generated=[], request=options)
    indexed, matched = Mock(wraps=NgramIndex.add), Mock(wraps=NgramIndex.match)
    monkeypatch.setattr(NgramIndex, "add", lambda *given: indexed(*given))
    monkeypatch.setattr(NgramIndex, "match", lambda *given: matched(*given))
    source, repeated = NgramGuesses(sequence, parked()), 0
    for token in [1, 2, 3] * 100:
        if source.ready():
            repeated += 1
            assert not source.guess(lambda: 0, 8, known=True)[1]
            assert indexed.call_count == len(sequence.prompt) + len(sequence.generated)
        sequence.generated.append(token)
    assert 1 < matched.call_count == repeated < 30


def test_step_without_a_match_asks_nothing_but_its_source() -> None:
    """Most steps of prose are such, and each is compared with one of a request that does not guess at all."""
    sequence: Any = SimpleNamespace(draft=None, request=SimpleNamespace(speculation=Speculation.NGRAM), loaded=None)
    sequence.loaded = SimpleNamespace(ahead=Ahead.EXACT)
    source: Any = SimpleNamespace(ready=lambda: False)
    guesser = Guesser(sequence, source)
    del sequence.loaded, sequence.request
    assert guesser.guess(lambda: 0, 9, known=False) == []
    assert guesser.taken() is None
