"""JSON schemas of all kinds, small enough that a model which says anything soon has said what they allow."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def objects(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of objects with up to three properties, some of them required."""
    names = st.lists(st.sampled_from(["a", "b c", 'd"', "é", "name"]), min_size=1, max_size=3, unique=True)
    return names.flatmap(
        lambda keys: st.builds(
            lambda values, required: {
                "type": "object",
                "properties": dict(zip(keys, values, strict=True)),
                "required": keys[:required],
                "additionalProperties": False,
            },
            st.lists(children, min_size=len(keys), max_size=len(keys)),
            st.integers(0, len(keys)),
        )
    )


def arrays(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of arrays with up to three items."""
    return st.builds(
        lambda items, least: {"type": "array", "items": items, "minItems": least, "maxItems": least + 1},
        children,
        st.integers(0, 2),
    )


SCHEMAS = st.recursive(
    st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string", "pattern": "^[a-f]{1,3}é?$"}]),
        st.builds(lambda least, more: {"type": "integer", "minimum": least, "maximum": least + more},
                  st.integers(-999, 999), st.integers(0, 9999)),
        st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 4)),
        st.builds(lambda values: {"enum": values},
                  st.lists(st.one_of(st.text(max_size=4), st.integers(-9, 9), st.none()), min_size=1, max_size=3)),
    ),
    lambda children: st.one_of(
        objects(children), arrays(children), st.builds(lambda a, b: {"anyOf": [a, b]}, children, children)
    ),
    max_leaves=4,
)  # fmt: skip
