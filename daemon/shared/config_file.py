"""The configuration file: TOML, read within limits of size and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daemon.shared.small_file import read_small

MOST_BYTES = 64 * 1024
MOST_DOTS = 1000
"""Size of the file, and dots in it outside of comments."""


def read_settings(path: Path) -> dict[str, Any]:
    """
    Return what the file says; nothing if there is none.

    Raises:
        ValueError: If it cannot be used. The text is one sentence with the path.
    """
    import tomllib  # here: most commands do not need it

    try:
        text = read_small(path, MOST_BYTES).decode("utf-8").replace("\r\n", "\n")
        if _dots(text) > MOST_DOTS:
            raise RecursionError
        return tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: byte {error.start} is not UTF-8.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {str(error).partition(';')[0]}.") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deep; each setting is one line, such as: max_models = 4.") from None


def _dots(text: str) -> int:
    """Count the dots outside of comments. The time of the parser grows with the square of a key's parts."""
    return sum(line.count(".") for line in text.splitlines() if not line.lstrip().startswith("#"))
