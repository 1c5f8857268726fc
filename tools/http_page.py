"""Write the tables of docs/http.md, from types of requests and rules of hygiene: `python -m tools.http_page`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from daemon.http.api import Endpoint, served
from daemon.http.hygiene import RULES
from daemon.http.parameters import Parameters, rows

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "http.md"
PARAMETERS = ("<!-- parameters -->\n", "<!-- end of parameters -->\n")
HYGIENE = ("<!-- hygiene -->\n", "<!-- end of hygiene -->\n")


def filled(text: str) -> str:
    """Return the page with its tables as the types have them now."""
    return _between(_between(text, PARAMETERS, "".join(_sections()) + "\n"), HYGIENE, _rules())


def _between(text: str, marks: tuple[str, str], content: str) -> str:
    begin, end = marks
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return head + begin + content + end + tail


def _rules() -> str:
    lines = [
        f"| `{name}` | {one.client} | {_cell(one.text)} | {'moved' if one.moved else 'dropped'} | {_cell(one.why)} |\n"
        for name, one in RULES.items()
    ]
    return "| rule | client | text | | why |\n|---|---|---|---|---|\n" + "".join(lines)


def _sections() -> Iterator[str]:
    for api in served():
        for endpoint in api.load().endpoints:
            if endpoint.types:
                yield f"\n### {api.name}: `{endpoint.method} {endpoint.path}`\n"
                yield from _tables(endpoint)


def _tables(endpoint: Endpoint) -> Iterator[str]:
    for title, kind in endpoint.types.items():
        yield f"\n**{title[:1].upper()}{title[1:]}**\n\n{_table(kind)}"


def _table(kind: type[Parameters]) -> str:
    lines = [f"| `{name}` | {treatment} | {_cell(about)} |\n" for name, treatment, about in rows(kind)]
    return "| parameter | | |\n|---|---|---|\n" + "".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
