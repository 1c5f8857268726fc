"""Namespaces share KV only if every field is equal, and text cannot move from one field to another."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import permutations

import pytest

from daemon.kv.keys import Namespace, model_digest

BASE = Namespace("weights", "adapter", "layout", "salt")


@pytest.mark.parametrize("name", [field.name for field in fields(Namespace)])
@pytest.mark.parametrize("value", ["", "x", "weights\0", "salt:4:salt"])
def test_namespace_changes_with_any_field(name: str, value: str) -> None:
    assert replace(BASE, **{name: value}).digest() != BASE.digest()


def test_swapped_field_values_are_other_namespaces() -> None:
    digests = {Namespace(*values).digest() for values in permutations(["a", "b", "c", "d"])}

    assert len(digests) == 24


def test_salt_equal_to_an_adapter_name_stays_apart() -> None:
    assert Namespace("w", "lora", "l", "").digest() != Namespace("w", "", "l", "lora").digest()


def test_text_moved_between_fields_changes_the_digest() -> None:
    assert Namespace("w", "", "ab", "c").digest() != Namespace("w", "", "a", "bc").digest()
    assert Namespace("ab", "c", "", "").digest() != Namespace("a", "bc", "", "").digest()


def test_equal_fields_give_equal_namespace_digests() -> None:
    assert replace(BASE).digest() == BASE.digest()


def test_namespaces_of_a_model_begin_with_its_digest() -> None:
    model = model_digest("weights", "adapter")

    assert BASE.digest().startswith(model)
    assert replace(BASE, salt="other", layout="other").digest().startswith(model)
    assert not replace(BASE, adapter="").digest().startswith(model)
    assert not replace(BASE, weights="x").digest().startswith(model)
