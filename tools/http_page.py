"""Write the tables of parameters into docs/http.md, from the types of requests: `python -m tools.http_page`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from daemon.http.api import Endpoint, served
from daemon.http.parameters import Parameters, rows

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "http.md"
BEGIN, END = "<!-- parameters -->\n", "<!-- end of parameters -->\n"


def filled(text: str) -> str:
    """Return the page with its tables as the types have them now."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + "".join(_sections()) + "\n" + END + tail


def _sections() -> Iterator[str]:
    for api in served():
        for endpoint in api.endpoints:
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
