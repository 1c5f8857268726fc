"""An MCP server of one tool, which writes a file. It speaks JSON-RPC on lines of its standard streams."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "text": {"type": "string"}},
    "required": ["path", "text"],
}
TOOL = {"name": "write", "description": "Writes a note.", "inputSchema": SCHEMA}


def result(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a call."""
    if method == "initialize":
        server = {"name": "notes", "version": "1"}
        return {"protocolVersion": given["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        Path(given["arguments"]["path"]).write_text(given["arguments"]["text"])
        return {"content": [{"type": "text", "text": "It is written."}]}
    return {}


if __name__ == "__main__":
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:  # others want no answer
            answer = result(message["method"], message.get("params", {}))
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": answer}) + "\n")
            sys.stdout.flush()
