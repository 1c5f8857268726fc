"""What guesses from n-grams ask of a step, most of which have none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from daemon.engine.execution.ngram_guesses import NgramGuesses
from daemon.engine.execution.request import Speculation
from daemon.engine.execution.speculation import Guesser
from daemon.engine.execution.together import guess
from daemon.engine.scheduling.governor import Check, Governor, Source
from daemon.engine.scheduling.ngrams import LONG, NgramIndex
from daemon.engine.scheduling.pass_costs import PassCosts
from daemon.kv.mlx.guess_passes import Exactness


@pytest.mark.parametrize(("stop_ids", "guessed"), [({4}, []), ({9}, [5, 1, 2])])
def test_nothing_is_guessed_behind_a_stop_token(stop_ids: set[int], guessed: list[int]) -> None:
    """The device may still compute it. A state that has seen more cannot be stored at the end of the answer."""
    options = SimpleNamespace(speculation=Speculation.NGRAM, stop_ids=stop_ids)
    sequence: Any = SimpleNamespace(prompt=[1, 2, 3, 4, 5, 1, 2, 3], generated=[], request=options)
    source = NgramGuesses(sequence, Governor())
    assert source.ready()
    assert source.offer(3) == (Source(Speculation.NGRAM, "short"), 3)
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


def answering(prompt: list[int]) -> Any:
    options = SimpleNamespace(speculation=Speculation.AUTO, stop_ids=set())
    return SimpleNamespace(prompt=prompt, generated=[], request=options)


def test_parked_ngrams_are_compared_with_the_answer_and_seldom_asked() -> None:
    """Most of a text that is guessed badly takes no more than its place in an index."""
    sequence, governor = answering([1, 2, 3] * 2), parked()
    source, asked = NgramGuesses(sequence, governor), 0
    for place in range(300):
        if source.ready():
            asked += 1
            assert not source.offer(8)[1]
        sequence.generated.append([1, 2, 3, 10 + place][place % 4])
    assert asked < 30
    record = governor.records[Source(Speculation.NGRAM, "short")]
    assert record.seen >= 70, "each place where something was to be guessed"
    assert record.chance < 0.1


def test_ngrams_that_begin_to_be_right_are_asked_soon() -> None:
    """A file is quoted behind prose: no pass was needed to find out that it is guessed well."""
    quotation, governor = list(range(100, 200)), Governor()
    for _ in range(200):
        governor.plain(1.0)
        governor.guessed(1.2, [Check(Source(Speculation.DRAFT), 2, 2, asked=True)], 3)
    sequence = answering([1, 2, 3, *quotation])
    source, tried = NgramGuesses(sequence, governor), []
    for token in [[1, 2, 3, 1000 + place][place % 4] for place in range(200)]:
        tried.append(source.ready() and bool(source.offer(8)[1]))
        sequence.generated.append(token)
        governor.stepped(1.0, 1, [], 1)
    assert (any(tried[:100]), any(tried[100:])) == (True, False)
    quoted = 0
    while not (source.ready() and source.offer(8)[1]):
        sequence.generated.append(quotation[quoted])
        governor.stepped(1.0, 1, [], 1)
        quoted += 1
    assert quoted <= 16


def counted(monkeypatch: pytest.MonkeyPatch, where: type, name: str) -> list[None]:
    """Return a list that gets an item with each call of a method."""
    calls, method = list[None](), getattr(where, name)

    def call(*given: Any) -> Any:
        calls.append(None)
        return method(*given)

    monkeypatch.setattr(where, name, call)
    return calls


@pytest.mark.parametrize("rests", [False, True])
def test_last_tokens_are_searched_once_a_step(monkeypatch: pytest.MonkeyPatch, rests: bool) -> None:
    """The match is compared with the token that follows, and it is what may be guessed."""
    searches = counted(monkeypatch, NgramIndex, "_search")
    sequence = answering([1, 2, 3] * 2)
    source = NgramGuesses(sequence, parked() if rests else Governor())
    for place in range(100):
        source.ready()
        sequence.generated.append([1, 2, 3, 10 + place][place % 4])
    assert 20 < len(searches) <= 100


def test_rows_of_a_pass_take_one_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what passes cost is computed when it was measured: most steps guess nothing, and each would pay for it."""
    decisions, costs = counted(monkeypatch, Governor, "_chosen"), counted(monkeypatch, PassCosts, "_expect")
    source, governor = Source(Speculation.NGRAM, LONG), Governor()
    for place in range(220):
        if place == 200:
            governor.stepped(1.5, 4, [Check(source, 2, 2)] * 4, 12)
        governor.stepped(1.0, 4, [], 4)
    before, steps = len(costs), 50
    for step in range(steps):
        assert len({governor.count(source, 8) for _ in range(4)}) == 1
        assert len(decisions) == step + 1
        governor.see(source, True)
        governor.stepped(1.0, 4, [], 4)
    assert len(costs) - before <= 16, "computed again at most once, for each width"


def test_step_without_a_match_asks_nothing_but_its_source() -> None:
    """Most steps of prose are such, and each is compared with one of a request that does not guess at all."""
    sequence: Any = SimpleNamespace(
        draft=None, pooled=None, request=None, loaded=SimpleNamespace(guess_exactness=Exactness.EXACT)
    )
    sequence.request = SimpleNamespace(speculation=Speculation.NGRAM)
    source: Any = SimpleNamespace(ready=lambda: False)
    guesser = Guesser(sequence, source)
    del sequence.loaded, sequence.request
    assert guesser.offer(9) is None
    assert guesser.taken() is None


@pytest.mark.parametrize(("offering", "waits"), [(1, False), (3, True)])
def test_no_row_waits_for_its_token_if_too_few_rows_have_something_to_guess(offering: int, waits: bool) -> None:
    """A wide pass costs all rows; a wait for a token lets the device idle."""
    source, governor, waited = Source(Speculation.NGRAM, LONG), Governor(), list[bool]()
    governor.set_rows(4)
    for _ in range(200):
        governor.plain(1.0)
        governor.guessed(2.2, [Check(source, 2, 2, asked=True)] * 4, 12)
        governor.see(source, True)

    def row(offer: tuple[Source, int] | None) -> Any:
        guesser = SimpleNamespace(asked=False, last=None)
        sequence = SimpleNamespace(kv=SimpleNamespace(held=9))
        return SimpleNamespace(
            unfed=[],
            unreported=object(),
            sequence=sequence,
            guesser=guesser,
            offer=lambda most, longest: offer,
            guess=lambda offered: waited.append(offered is not None) or [],  # type: ignore[func-returns-value]
        )

    assert governor.count(source, 2) == 2, "all rows together gain"
    assert guess([row((source, 2) if place < offering else None) for place in range(4)], governor) is None
    assert any(waited) == waits
