"""OpenAI's choice `allowed_tools`: the tools that may be called, while the model is told of all. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Set

from daemon.http.errors import invalid


def allowed_names(
    entries: Iterable[tuple[str, str | None]],
    *,
    place: str,
    named: str,
    told: Set[str],
    left_out: Set[str],
) -> list[str]:
    """
    Return the names of the tools that may be called.

    Args:
        entries: Type and name of each entry of the choice.
        place: The parameter with the entries.
        named: The parameter of an entry that has its name, such as ".name".
        told: Names of the tools that the model is told of.
        left_out: Types of the request's tools that it is not told of. Entries of these types are left out as well.

    Raises:
        Problem: If an entry is none of the request's tools, or all are left out.
    """
    names: list[str] = []
    for index, (kind, name) in enumerate(entries):
        if kind in left_out:
            continue
        if name is None:
            raise invalid(f"{place}[{index}]{named}", "is missing; it names a tool that may be called")
        if name not in told:
            raise invalid(f"{place}[{index}]{named}", "is the name of none of the tools; name one of `tools`")
        names.append(name)
    if not names:
        raise invalid(place, "has no tool that the model is told of; use the choice `none`")
    return names
