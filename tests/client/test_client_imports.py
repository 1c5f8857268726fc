"""Importing the client is cheap: it brings what it needs, when it needs it, and nothing of MLX."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_sidecar

HEAVY = {"mlx", "mlx_lm", "transformers", "tokenizers", "numpy", "torch", "huggingface_hub", "daemon"}
README = Path(mlx_sidecar.__file__).parents[1] / "README.md"


def imported_by(statement: str) -> set[str]:
    """Return the top-level names of all modules that a fresh interpreter has after a statement."""
    script = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_a_client_needs_no_mlx() -> None:
    """A program that only calls the daemon pays for none of its libraries."""
    modules = imported_by("import mlx_sidecar; mlx_sidecar.Client; mlx_sidecar.AsyncClient")
    assert "grpc" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize(
    "statement",
    [
        "import mlx_sidecar",
        "import mlx_sidecar.v1.sidecar_pb2",
        "from mlx_sidecar import default_socket_path",
        "from mlx_sidecar import Message, SidecarError, Stats",
    ],
)
def test_results_and_errors_import_no_grpc(statement: str) -> None:
    """The daemon's engine imports the messages, and the daemon's settings import the address."""
    assert not imported_by(statement) & {*HEAVY, "grpc", "asyncio"}


def test_exported_names_are_sorted_and_exist() -> None:
    """Everything that is promised can be imported, and everything that can be imported is promised."""
    names = mlx_sidecar.__all__
    assert names == sorted(names, key=lambda name: (name[0].islower() or name[0] == "_", name))
    assert set(names) == {*mlx_sidecar._HOME, "__version__"}
    assert all(hasattr(mlx_sidecar, name) for name in names)
    assert set(names) <= set(dir(mlx_sidecar))


def test_type_checkers_see_the_exported_names() -> None:
    """The imports under TYPE_CHECKING name the same names and the same modules as the table of the interpreter."""
    tree = ast.parse(Path(mlx_sidecar.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    homes = {alias.name: str(node.module).removeprefix("mlx_sidecar.") for node in imports for alias in node.names}
    assert homes == mlx_sidecar._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any module."""
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        mlx_sidecar.Cleint  # noqa: B018


def test_every_exported_name_is_documented() -> None:
    """For readers of `help()`."""
    for name in set(mlx_sidecar.__all__) - {"__version__", "GenerateEvent", "Prompt"}:
        member = getattr(mlx_sidecar, name)
        # Dataclasses make a docstring up from their fields when they have none.
        assert not member.__doc__.startswith(f"{name}("), name


def test_readme_snippets_use_names_that_exist() -> None:
    """Every Python block compiles, and what it imports from the package is exported."""
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 5
    for snippet in snippets:
        compile(snippet, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module == "mlx_sidecar":
                assert {alias.name for alias in node.names} <= set(mlx_sidecar.__all__)
