"""Conversations of answers that are kept: what goes before a request, and what is kept of its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from daemon.http.errors import Problem
from daemon.http.responses.answer_types import Deleted, ItemList, Response
from daemon.http.responses.item_types import (
    CustomCallItem,
    CustomOutputItem,
    FunctionCallItem,
    FunctionOutputItem,
    Item,
    MessageItem,
)
from daemon.http.responses.request_types import Asked, ResponseRequest
from daemon.http.responses.store import Kept, Store
from daemon.http.responses.turns import resolved

_ITEM: TypeAdapter[Item] = TypeAdapter(Item)


class Conversation:
    """
    The conversation that a request goes on with.

    Args:
        request: The request.
        store: The answers that are kept.

    Attributes:
        before: The items so far.
        given: The items of the request, references resolved.

    Raises:
        Problem: If the answer that it goes on from, or an item, is not kept.
    """

    def __init__(self, request: Asked, store: Store) -> None:
        self._store = store
        self._keep = isinstance(request, ResponseRequest) and request.store is not False
        self._before = _before(request, store)
        self.before = [_ITEM.validate_json(item) for item in self._before]
        self.given = resolved(request.input, self._item)

    def _item(self, name: str) -> Item | None:
        found = self._store.item(name)
        return None if found is None else _ITEM.validate_json(found)

    def keep(self, answer: Response) -> None:
        """Keep a finished answer, unless the request has it otherwise."""
        if not self._keep:
            return
        given = [
            _named(item, f"item_{answer.id.removeprefix('resp_')}_{index}") for index, item in enumerate(self.given)
        ]
        output = tuple(item.model_dump_json(exclude_unset=True).encode() for item in answer.output)
        kept = Kept(_json(answer), (*self._before, *given), output)
        self._store.put(answer.id, kept, [item.id for item in answer.output])


def _before(request: Asked, store: Store) -> tuple[bytes, ...]:
    name = request.previous_response_id
    if name is None:
        return ()
    if (kept := store.get(name)) is None:
        raise Problem(
            400,
            "previous_response_id names no answer that is kept; give the whole conversation as `input`",
            code="previous_response_not_found",
            field="previous_response_id",
        )
    return kept.given + kept.output


def _named(item: Item, name: str) -> bytes:
    """Return an item with an id and what else lists of items need and requests can leave out."""
    given = {"id": name, **item.model_dump(mode="json", by_alias=True, exclude_none=True)}
    if isinstance(item, MessageItem | FunctionCallItem | FunctionOutputItem | CustomCallItem | CustomOutputItem):
        given.setdefault("status", "completed")
    if isinstance(item, MessageItem) and item.role == "assistant":
        given["content"] = [_answered(part) for part in given["content"]]
    return json.dumps(given).encode()


def _answered(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a message as an answer has it: text of the assistant's is output."""
    return part if part["type"] == "refusal" else {"annotations": [], **part, "type": "output_text"}


def _json(answer: Response) -> bytes:
    return answer.model_dump_json(exclude_unset=True).encode()


def found(store: Store, name: str) -> Kept:
    """
    Return an answer that is kept.

    Raises:
        Problem: If it is not.
    """
    if (kept := store.get(name)) is None:
        raise not_found()
    return kept


def not_found() -> Problem:
    """Return the problem of an answer that is not kept."""
    return Problem(404, "there is no such response; see `store`", code="not_found", field="response_id")


def deleted(store: Store, name: str) -> Deleted:
    """
    Forget an answer.

    Raises:
        Problem: If it is not kept.
    """
    if not store.drop(name):
        raise not_found()
    return Deleted(id=name, object="response", deleted=True)


def page(kept: Kept, *, limit: int, after: str | None, newest_first: bool) -> ItemList:
    """
    Return some of the items that an answer answers.

    Args:
        kept: The answer.
        limit: Most items.
        after: Id of the item before the first one; None for the first of all.
        newest_first: Their order.

    Raises:
        Problem: If there is no item `after`.
    """
    items: Sequence[Any] = [json.loads(item) for item in kept.given]
    items = items[::-1] if newest_first else items
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise Problem(400, "after names no item of this response", code="invalid_value", field="after")
    first = 0 if after is None else ids.index(after) + 1
    shown = list(items[first : first + limit])
    return ItemList(
        object="list",
        data=shown,
        first_id=shown[0]["id"] if shown else None,
        last_id=shown[-1]["id"] if shown else None,
        has_more=first + limit < len(items),
    )
