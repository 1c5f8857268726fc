"""Documentation agrees with the code: commands, keys, events, tests and files are documented, and those named exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from google.rpc import code_pb2

from benchmarks import page
from daemon.cache import digest_notes
from daemon.cli import COMMANDS, exit_codes, main, starting
from daemon.engine.background import task
from daemon.http import token
from daemon.http.errors import STATUSES
from daemon.kv.disk import note
from daemon.launch import door
from daemon.server import http_listener
from daemon.shared import config, presence
from daemon.shared.config import ENV_PREFIX, KEYS
from daemon.shared.errors import CODES, Reason
from mlx_sidecar.v1 import sidecar_pb2
from tools import api_page, code_map, configuration_page, http_page
from tools.readme_figure import filled

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
FOLDERS = ("docs", "clients", "launchd", "systemd", "daemon", "benchmarks", "tools")

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    """In the operations page."""
    assert f"`mlx-sidecar {command}" in OPERATIONS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_option_has_help(command: str) -> None:
    """In its help."""
    implementation = main.get_command(click.Context(main), command)
    assert implementation is not None
    for parameter in implementation.params:
        assert not isinstance(parameter, click.Option) or parameter.help, f"{command} {parameter.name} has no help"


def test_commands_to_copy_have_no_comments() -> None:
    """zsh, which macOS has, takes what is typed behind a # for arguments: those of `rm -r` would be removed."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
    blocks = {
        name: "".join(re.findall(r"^ *```(?:sh|bash|console)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE))
        for name, text in texts.items()
    }
    blocks |= {name: getattr(main.get_command(click.Context(main), name), "epilog", None) or "" for name in COMMANDS}
    assert len([block for block in blocks.values() if block]) > 20
    assert {name: block for name, block in blocks.items() if re.search(r"(^|\s)#", block)} == {}


@pytest.mark.parametrize("key", KEYS)
def test_every_configuration_key_is_documented(key: str) -> None:
    """In the page that is made from the keys, with its variable."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert f"## `{key}`" in page
    assert f"`{ENV_PREFIX}{key.upper()}`" in page


def test_every_exit_code_is_documented() -> None:
    """With the words of `--help`."""
    for code, meaning in exit_codes.MEANINGS.items():
        assert f"| {code} | {meaning}" in OPERATIONS


class Logged(NamedTuple):
    """An event that a module logs: its text, its level, if that is fixed, and its fields that have fixed names."""

    module: str
    event: str
    level: str
    fields: set[str]


def events() -> Iterator[Logged]:
    """Yield each event that is logged, but for those that the parent hands on."""
    for path in sorted((ROOT / "daemon").rglob("*.py")):
        tree = ast.parse(path.read_text())
        texts = {
            statement.targets[0].id: statement.value
            for statement in tree.body
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=level), args=[first, *_]):
                    level = "error" if level == "exception" else level
                case ast.Call(func=ast.Name("write"), args=[first, *_]):
                    level = ""
                case _:
                    continue
            first = texts.get(first.id, first) if isinstance(first, ast.Name) else first
            if isinstance(first, ast.Constant):
                fields = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                yield Logged(path.name, str(first.value), level, fields)
            else:
                assert path.name == "engine_process.py", f"{path.name} logs an event without a fixed name"


def test_every_log_event_is_documented() -> None:
    """A search for an event in the operations page finds its meaning."""
    logged = {event: module for module, event, *_ in events()}
    rows = re.findall(r"^\| `([^`]+)` \| (?:info|warning|error)", OPERATIONS, re.MULTILINE)
    documented = set(rows)
    assert len(rows) == len(documented), "an event is documented twice"
    assert len(logged) > 20
    assert {event: module for event, module in logged.items() if event not in documented} == {}
    assert documented <= set(logged), "an event is documented that nothing logs"


ANYWHERE = {"request_id", "model", "error", "process", "pid", "exc_info"}
"""Fields of which the page says before the tables that any event may have them."""


def test_log_events_have_their_documented_level_and_fields() -> None:
    """Each row names what a line is read by. A warning or an error has something to do, if only "nothing"."""
    rows = {
        event: (level, said, todo)
        for event, level, said, todo in re.findall(
            r"^\| `(\w+)` \| ((?:info|warning|error).*?) \| (.*) \| (.*) ?\|$", OPERATIONS, re.MULTILINE
        )
    }
    wrong = {logged.event: logged.level for logged in events() if logged.level not in rows[logged.event][0]}
    assert wrong == {}
    unsaid = {
        logged.event: missing
        for logged in events()
        if (missing := {name for name in logged.fields - ANYWHERE if f"`{name}`" not in rows[logged.event][1]})
    }
    assert unsaid == {}
    assert [event for event, (*_, todo) in rows.items() if not todo.strip()] == []


def test_api_page_matches_the_proto() -> None:
    """Run `make gen` after a change of its comments."""
    assert (ROOT / "docs" / "api.md").read_text() == api_page.page(api_page.compiled())


def test_every_api_element_is_documented() -> None:
    """Each message, field, enum value and RPC has a comment, which is what docs/api.md is made of."""
    rows = api_page.page(api_page.compiled()).splitlines()
    assert not [row for row in rows if row.startswith("| `") and row.rstrip().endswith("|  |")]
    for name in [*sidecar_pb2.DESCRIPTOR.message_types_by_name, *sidecar_pb2.DESCRIPTOR.enum_types_by_name]:
        at = rows.index(f"## {name}")
        assert rows[at + 2], f"{name} has no comment"


def test_configuration_page_matches_the_fields() -> None:
    """Run `make gen` after a change of a key."""
    assert (ROOT / "docs" / "configuration.md").read_text() == configuration_page.page()


def test_http_page_matches_the_types_of_requests() -> None:
    """Run `make gen` after a change of a parameter."""
    text = http_page.PAGE.read_text()
    assert http_page.filled(text) == text


@pytest.mark.parametrize("reason", Reason)
def test_every_error_reason_is_documented(reason: Reason) -> None:
    """In the operations page, with its gRPC code, its status over HTTP, and what to do."""
    row = rf"^\| `{reason}` \| {code_pb2.Code.Name(CODES[reason])} \| {STATUSES[reason]} \| \w.* \|$"
    assert re.search(row, OPERATIONS, re.MULTILINE)


def test_every_rpc_is_in_the_request_lifecycle() -> None:
    """And in the README."""
    rpcs = [method.name for method in sidecar_pb2.DESCRIPTOR.services_by_name["SidecarService"].methods]
    for path in (ROOT / "README.md", ROOT / "docs" / "request-lifecycle.md"):
        assert all(rpc in path.read_text() for rpc in rpcs)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_resolve(path: Path) -> None:
    """Relative links only, to headings as well; the web is not asked."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text()):
        there = path.parent / target if target else path
        assert there.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{path.name} links to {target}#{anchor}"


def anchors(path: Path) -> set[str]:
    """Return what the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_decisions_have_status_and_date() -> None:
    """The index has each page with its title and its status."""
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    pages = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    for path in pages:
        found = re.match(r"# (\d+)\. (.+)\n\nStatus: (accepted, \d{4}-\d\d-\d\d.*)\.\n", path.read_text())
        assert found is not None, f"{path.name} has no status"
        number, title, status = found.groups()
        assert f"| {number} | [{title}]({path.name}) | {status} |" in index
    assert index.count("\n| ") == len(pages) + 1


def test_every_folder_of_the_daemon_is_in_the_architecture() -> None:
    """With what is in it."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.parent.name for path in (ROOT / "daemon").glob("*/*") if not path.parent.name.startswith("_")}
    assert {folder for folder in folders if f"`daemon/{folder}/`" not in text} == set()


def test_every_file_of_the_state_directory_is_documented() -> None:
    """An operator can tell what may be deleted, and what is secret."""
    files = OPERATIONS.partition("\n## Files\n")[2].partition("\n## ")[0]
    names = {config.FILE_NAME, digest_notes.FILE_NAME, token.FILE_NAME, presence.NAME, note.NAME, door.LOG_NAME}
    names |= {starting.LOG_NAME, starting.STDERR_NAME, http_listener.UNIX_NAME}
    assert {name for name in names if name not in files} == set()


def test_reading_list_of_a_block_names_what_is_there() -> None:
    """Each function or class that a step names is defined in a file that the list has named by then."""
    steps = (ROOT / "docs" / "prefix-cache.md").read_text().partition("## How a block is stored and restored")[2]
    code = ""
    for name in re.findall(r"`([\w/.]+)`", steps.partition("\nWindows add")[0]):
        code += (ROOT / name).read_text() if name.endswith(".py") else ""
        assert name.endswith(".py") or re.search(rf"(def|class) {name.rpartition('.')[2]}\b", code), name


def test_hanging_work_has_all_its_kinds_in_the_table() -> None:
    """A search for `work` of a line finds it."""
    kinds = {kind.name for kind in vars(task).values() if isinstance(kind, task.Kind)}
    row = next(line for line in OPERATIONS.splitlines() if line.startswith("| `background_work_abandoned`"))
    assert kinds <= set(re.findall(r"\w+", row))


def test_code_map_matches_module_docstrings() -> None:
    """Run `make gen` after a change of a module's docstring. Every module that was written by hand is in it."""
    page = (ROOT / "docs" / "code-map.md").read_text()
    assert page == code_map.page()
    folders = {path.parent for path in (ROOT / "daemon").rglob("*.py") if "_pb2" not in path.name}
    mapped = {ROOT / "daemon" / folder for folder in code_map.folders()}
    assert folders - mapped <= {ROOT / "daemon" / "v1"}


def test_readme_quotes_the_latest_benchmark() -> None:
    """`make bench` puts it there; `python -m tools.readme_figure` alone does too."""
    text = (ROOT / "README.md").read_text()
    assert filled(text) == text


def test_benchmark_page_matches_the_raw_figures() -> None:
    """`make bench` writes both; a table that was edited by hand, or a figure without its table, fails here."""
    text = page.PAGE.read_text()
    assert page.filled(text) == text
    _, results = page.load()
    assert all(f"<!-- figures: {name} -->" in text for name in results)


@pytest.mark.parametrize("page", ["prefix-cache.md", "evidence.md"])
def test_every_test_that_the_docs_name_exists(page: str) -> None:
    """A promise without its test is none."""
    defined = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text()))
    assert len(named) > 30
    assert not named - defined


def test_every_fault_table_row_has_its_tests() -> None:
    """Each fault that Linux can show, in order; the row without a test needs two processes on Metal."""
    text = (ROOT / "docs" / "evidence.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", text, re.MULTILINE)
    assert [int(row) for row, _ in rows] == [*range(1, 51), *range(54, 64)]
    assert [row for row, tests in rows if "`test_" not in tests] == ["61"]


def test_documented_pytest_commands_select_tests() -> None:
    """Paths of files and folders below tests."""
    text = (ROOT / "docs" / "evidence.md").read_text()
    paths = re.findall(r"tests/[\w/.]+", text)
    assert len(paths) > 30
    assert not [path for path in paths if not (ROOT / path).exists()]
