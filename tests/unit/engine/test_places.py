"""Where a token lies in its request: in the right message, at the right character, or not known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.prompt.places import Place, Places, Span, TokenIds, places_of, spans_of, starts_of

ROLES = ["system", "user", "assistant"]
CONTENTS = st.lists(
    st.sampled_from(["user", "a", "aa", "", "hello", " hello ", "hello\n<user>a", "🦀 e\u0301"]), max_size=6
)


def rendered(contents: list[str]) -> tuple[str, list[int]]:
    """Return a conversation as a template writes it, and where each stripped content begins."""
    text, begins = "<s>", []
    for index, content in enumerate(contents):
        text += f"<{ROLES[index % 3]}>"
        begins.append(len(text))
        text += content.strip() + "</>"
    return text + "<assistant>", begins


@given(CONTENTS)
def test_content_that_is_found_is_in_its_place(contents: list[str]) -> None:
    text, begins = rendered(contents)

    for start, stop, message, skipped in spans_of(text, contents):
        assert message is not None
        assert start == begins[message]
        assert text[start:stop] == contents[message].strip()
        assert contents[message][skipped:].startswith(text[start:stop])


def test_contents_of_an_ordinary_chat_are_all_found() -> None:
    contents = ["Be brief.", " What is it?\n", "A door.", "What is it?"]
    text, begins = rendered(contents)

    assert [span.start for span in spans_of(text, contents)] == begins
    assert [span.skipped for span in spans_of(text, contents)] == [0, 1, 0, 0]


def test_content_equal_to_a_mark_is_not_found() -> None:
    text, begins = rendered(["Be brief.", "user", "Good."])

    assert [(span.message, span.start) for span in spans_of(text, ["Be brief.", "user", "Good."])] == [
        (0, begins[0]),
        (2, begins[2]),
    ]


def test_rewritten_contents_end_the_search_in_time() -> None:
    """Each one that is missing costs a search through the whole text."""
    contents = [f"rewritten {number}" for number in range(20)]
    text, _ = rendered(["no"] * 20 + ["kept"])

    assert spans_of(text, [*contents[:7], "kept"]) == [Span(text.index("kept"), text.index("kept") + 4, 7)]
    assert spans_of(text, [*contents, "kept"]) == []


def test_place_is_that_of_the_token() -> None:
    """Its first character counts; a token that reaches into a content begins it, and the end belongs to a content."""
    places = Places([-1, 0, 4, 9, 12, 15, 20], 25, [Span(5, 12, 0, 2), Span(20, 25, 3)])

    assert [places.at(token) for token in range(8)] == [
        Place(),
        Place(),
        Place(0, 2),
        Place(0, 6),
        Place(0, 9),
        Place(),
        Place(3, 0),
        Place(),
    ]
    assert places.lead == 3


def test_special_tokens_before_a_text_are_its_lead() -> None:
    starts = starts_of([(0, 0), (0, 3), (3, 3), (3, 7), (0, 0)])
    ids = TokenIds([1, 5, 6, 7, 2])
    ids.starts = starts

    assert list(starts) == [-1, 0, 0, 3, 3]
    places = places_of(ids, "abcdefg", None)
    assert places is not None
    assert places.lead == 1
    assert places.at(3) == Place(None, 3)
