"""Advice that is obeyed harms nothing: it changes no directory that others use, and installs no stranger's code."""

from __future__ import annotations

import ast
import os
import re
import shlex
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.doctor import places
from daemon.server.socket_path import SocketPathError, prepare_directory, prepare_socket_path
from mlx_sidecar import UntrustedSocket
from mlx_sidecar._address import own_directory, socket_exists

ROOT = Path(__file__).resolve().parents[2]
CODE = ("daemon", "clients/python/mlx_sidecar", "tools", "benchmarks")
TEXTS = {".md", ".py", ".rb", ".toml", ".jinja", ".conf", ".plist", ".service", ".yml", ".mjs", ".proto", ".txt", ""}
SHARED = ("/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/home", "/etc", "/usr", "/opt", "/srv")
COMMANDS = r"chmod|chown|chgrp|rm|rmdir|mv|kill|pkill|killall|sudo|dd|truncate|umount|launchctl (?!is\b)[a-z]+"
"""Programs that can take something away."""

HARMLESS = {
    "chmod 600 {path}": "said of a file that holds the key of a group and nothing else",
    "chmod 700": "said of the directory of cached prefixes alone, which is ours",
    "rm org/model": "what mlx-sidecar cache rm removes",
    "rm --all --yes": "the same",
    "chmod 700 {shlex.quote(str(socket.parent))}": "said of `own_directory()` alone",
    "launchctl enable {target}": "the target is our own job",
    "launchctl limit maxfiles": "it prints limits",
    "launchctl print does not tell it": "a finding about its answer",
}
"""Each command that a text of the code advises, and why it harms nothing."""


def texts() -> Iterator[tuple[Path, str]]:
    """Yield every text of the project that a person may read: code, pages, samples; not tests."""
    left_out = {".git", ".venv", "tests", "node_modules", "dist", "build", "shared"}
    for folder, below, names in os.walk(ROOT):
        below[:] = [one for one in below if one not in left_out and not one.endswith("_cache")]
        for name in names:
            path = Path(folder, name)
            if path.suffix in TEXTS:
                yield path, path.read_text("utf-8", "replace")


def said(path: Path) -> Iterator[str]:
    """Yield the texts in a program, with the expressions of f-strings in braces, docstrings left out."""
    tree = ast.parse(path.read_text())
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in ast.walk(node) if part is not node)
            if id(node) not in inside:
                parts = [
                    str(one.value) if isinstance(one, ast.Constant) else f"{{{ast.unparse(one.value)}}}"
                    for one in node.values
                    if isinstance(one, ast.Constant | ast.FormattedValue)
                ]
                yield "".join(parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def obey(text: str) -> Path:
    """Return the socket that a sentence advises."""
    (advised,) = re.findall(r"--socket (.+?)$", text)
    (path,) = shlex.split(advised)
    return Path(path)


@pytest.fixture(name="home")
def _home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home directory of the test's own; there is no runtime directory."""
    monkeypatch.setenv("HOME", str(folder / "home"))
    for name in ("XDG_RUNTIME_DIR", "MLX_SIDECAR_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    (folder / "home").mkdir()
    return folder / "home"


@pytest.mark.parametrize("directory", SHARED)
def test_socket_in_a_system_directory_is_refused(directory: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the user owns it, as root does, or not: the advice names a directory that is not there yet."""
    if not Path(directory).is_dir() or Path(directory).is_symlink():
        pytest.skip("this machine has no such directory")
    owner = Path(directory).stat().st_uid
    before = Path(directory).stat().st_mode
    for uid in (owner, owner + 4711):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        socket = Path(directory, "s.sock")
        with pytest.raises(SocketPathError) as refused:
            prepare_directory(socket)
        text = str(refused.value)
        assert not re.search(rf"\b({COMMANDS}) ", text), text
        assert obey(text).parent != Path(directory)
        assert not obey(text).parent.exists()
        finding = places.socket(socket)
        assert text in f"{finding.found}; {finding.fix}"
    assert Path(directory).stat().st_mode == before


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o775, 0o755, 0o711, 0o500])
@pytest.mark.parametrize("name", ["d", "a 'quoted' $name"])
def test_advised_command_works_and_touches_nothing(home: Path, mode: int, name: str) -> None:
    """The directory that is in the way is not touched; a second refusal would be no advice."""
    directory = home.parent / name
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(SocketPathError) as refused:
        prepare_socket_path(directory / "s.sock")
    advised = obey(str(refused.value))
    prepare_socket_path(advised)
    assert stat.S_IMODE(advised.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.stat().st_mode) == mode
    directory.chmod(0o700)


def test_default_path_is_advised_in_unsafe_directory(home: Path) -> None:
    """In a directory without the sticky bit, others may rename what is ours; one that exists may be theirs."""
    directory = home.parent / "d"
    for mode in (0o777, 0o1777):
        directory.mkdir()
        (directory / f"mlx-sidecar-{os.geteuid()}").mkdir()
        directory.chmod(mode)
        with pytest.raises(SocketPathError) as refused:
            prepare_socket_path(directory / "s.sock")
        assert obey(str(refused.value)) == home / ".mlx-sidecar" / "sidecar.sock"
        (directory / f"mlx-sidecar-{os.geteuid()}").rmdir()
        directory.rmdir()


def test_only_the_daemons_own_directory_is_chmodded(home: Path) -> None:
    """It is common to make it by hand, for config.toml; nothing else is kept there."""
    own = own_directory()
    own.mkdir()
    own.chmod(0o755)
    with pytest.raises(SocketPathError, match=f"run: chmod 700 {re.escape(str(own))}$"):
        prepare_socket_path(own / "sidecar.sock")


def test_client_never_advises_chmod_of_system_path(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, to whom `/tmp` belongs; a socket lies there already."""
    directory = folder / "d"
    directory.mkdir()
    directory.chmod(0o1777)
    os.mkfifo(directory / "s.sock")
    with pytest.raises(UntrustedSocket, match="other users may write") as refused:
        socket_exists(directory / "s.sock")
    assert "chmod" not in str(refused.value)
    assert obey(str(refused.value)) == directory / f"mlx-sidecar-{os.geteuid()}" / "s.sock"


def test_advised_commands_are_known_to_be_harmless() -> None:
    """A new one has to be looked at: what it does when root obeys it, with any path in it."""
    advised: set[str] = set()
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            for text in said(path):
                advised.update(
                    found[0] for found in re.finditer(rf"(?<!mlx-sidecar )\b(?:{COMMANDS}) [-\w/{{~.][^,;`]*", text)
                )
    assert any("chmod" in one for one in advised), "the walk sees advice"
    assert {one for one in advised if not any(one.startswith(good) for good in HARMLESS)} == set()


def test_no_page_advises_commands_on_system_paths() -> None:
    """Examples of destructive commands name our own places, or a placeholder for a process."""
    own = r"~/\.mlx-sidecar|~/Library/Logs/mlx-sidecar|~/\.config/systemd/user/mlx-sidecar|\$|~/\.cache/huggingface"
    for path, text in texts():
        if path.suffix == ".md":
            for line in re.findall(r"^ *(?:sudo )?(?:rm|mv|chmod|chown)(?: -\S+)* (.*)$", text, re.MULTILINE):
                for word in shlex.split(line, comments=True):
                    absolute = word.startswith(("/", "~", "$")) and not re.match(own, word)
                    assert not absolute, f"{path.name}: {line}"


def unpublished() -> list[str]:
    """Return the names of our distributions."""
    files = (ROOT / "pyproject.toml", ROOT / "clients" / "python" / "pyproject.toml")
    return [tomllib.loads(file.read_text())["project"]["name"] for file in files]


def test_no_text_advises_unpublished_package_names() -> None:
    """An index gives such a name to the first account that asks, and with it our users' machines."""
    names = "|".join(sorted(unpublished(), key=len, reverse=True)).replace("-", "[-_]")
    verbs = r"(?:pip3?|pipx|uv|poetry|conda|brew) +(?:\w+ +)?(?:install|add|run|upgrade|inject|sync)|uvx"
    by_name = re.compile(rf"\b(?:{verbs})\b[^\n`|#&;]*?[ \"'](?:{names})(?:\[[\w,]*\])?(?![\w.\-/@]| @)")
    extra = re.compile(rf"\binstall\w* [\"'`]?(?:{names})\[")
    seen = 0
    for path, text in texts():
        seen += "uv tool install" in text
        for pattern in (by_name, extra):
            for found in pattern.finditer(text):
                line = text.count("\n", 0, found.start()) + 1
                pytest.fail(f"{path.relative_to(ROOT)}:{line} advises {found[0]!r}; say how to install a checkout")
    assert seen >= 4


def test_release_page_begins_with_package_names() -> None:
    """Until they are ours, any account can take them."""
    release = (ROOT / "CONTRIBUTING.md").read_text().partition("## Releases")[2]
    first = release[: release.index("[Unreleased]")]
    assert all(f"`{name}`" in first for name in unpublished())
    assert "PyPI" in first
