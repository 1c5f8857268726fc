"""Reasoning that a client keeps and gives back: text in a form that says where it comes from. It is not encrypted."""

from __future__ import annotations

import base64
import binascii

_MARK = "mlx-sidecar:"


def packed(text: str) -> str:
    """Return a reasoning as `encrypted_content`. Clients treat it as opaque."""
    return _MARK + base64.b64encode(text.encode()).decode()


def unpacked(content: str) -> str | None:
    """Return the reasoning of `encrypted_content`; None if it is not of this server."""
    if not content.startswith(_MARK):
        return None
    try:
        return base64.b64decode(content.removeprefix(_MARK), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
