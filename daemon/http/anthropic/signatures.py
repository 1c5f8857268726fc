"""
Signatures of thinking blocks: they show that a thinking is as the model wrote it, or have its text.

    mlx-sidecar.sum.…     a digest; the text is beside it in the block
    mlx-sidecar.text.…    the text itself, for clients that ask to leave it out of the block

The same thinking has the same signature, so that a conversation that comes back has the same prompt. A digest is no
secret: it finds mistakes, such as a text that was cut. Signatures of other servers are not looked at.
"""

from __future__ import annotations

import base64
import hashlib

_SUM = "mlx-sidecar.sum."
_TEXT = "mlx-sidecar.text."


def signature(thinking: str, *, omitted: bool) -> str:
    """Return the signature of a thinking; `omitted` if its text is not beside it."""
    if omitted:
        return _TEXT + _encoded(thinking.encode())
    return _SUM + _encoded(hashlib.sha256(thinking.encode()).digest())


def signed(thinking: str, given: str) -> str:
    """
    Return the thinking of a block that came back.

    Raises:
        ValueError: If the signature is of another text, or damaged.
    """
    if given.startswith(_TEXT) and not thinking:
        return base64.b64decode(given.removeprefix(_TEXT), altchars=b"-_", validate=True).decode()
    if given.startswith((_SUM, _TEXT)) and given not in (signature(thinking, omitted=how) for how in (False, True)):
        raise ValueError("the signature is of another text")
    return thinking


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()
