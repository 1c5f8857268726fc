"""Write docs/api.md from the comments of the public proto: `python -m tools.api_page`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).resolve().parent.parent
PROTO = "mlx_sidecar/v1/sidecar.proto"
PAGE = ROOT / "docs" / "api.md"
HEAD = f"""\
# API

Made from [the proto](../protos/{PROTO}) by `make gen`; change its comments, not this page.
What to do about errors is in [operations.md](operations.md#errors). Whole programs:
[Python](clients/python.md), [Node](clients/node.md), [Go](clients/go.md), [Swift](clients/swift.md).

"""
_MESSAGE, _ENUM, _SERVICE, _FIELD, _VALUE, _METHOD = 4, 5, 6, 2, 2, 2
"""Numbers of the fields of descriptors that paths of source locations are made of."""
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}


class Proto:
    """A compiled proto file and its comments."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self._comments = {tuple(one.path): one for one in file.source_code_info.location}

    def comment(self, *path: int) -> str:
        """Return the comment before an element as one paragraph for each; empty if there is none."""
        location = self._comments.get(path)
        return "" if location is None else _joined(location.leading_comments)

    def opening(self) -> str:
        """Return the comment at the top of the file as it stands."""
        syntax = self._comments[(12,)]
        return "\n".join(line.removeprefix(" ") for line in syntax.leading_comments.splitlines())


def compiled() -> Proto:
    """Compile the public proto and return it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.pb"
        flags = [f"-I{ROOT / 'protos'}", "--include_source_info", f"--descriptor_set_out={out}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, PROTO], check=True)
        return Proto(FileDescriptorSet.FromString(out.read_bytes()).file[0])


def page(proto: Proto) -> str:
    """Return the page as Markdown."""
    parts = [HEAD + proto.opening(), *_service(proto)]
    parts += [_message(proto, index, one) for index, one in enumerate(proto.file.message_type)]
    parts += [_enum(proto, index, one) for index, one in enumerate(proto.file.enum_type)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _service(proto: Proto) -> Iterator[str]:
    (service,) = proto.file.service
    yield f"## {service.name}\n\n{proto.comment(_SERVICE, 0)}"
    for index, method in enumerate(service.method):
        stream = "stream of " if method.server_streaming else ""
        signature = f"{_link(method.input_type)} → {stream}{_link(method.output_type)}"
        yield f"### {method.name}\n\n{signature}\n\n{proto.comment(_SERVICE, 0, _METHOD, index)}"


def _message(proto: Proto, index: int, message: DescriptorProto) -> str:
    text = f"## {message.name}\n\n{proto.comment(_MESSAGE, index)}"
    if not message.field:
        return text
    rows = [
        f"| `{field.name}` | {field.number} | {_type(message, field)} "
        f"| {_cell(proto.comment(_MESSAGE, index, _FIELD, at))} |"
        for at, field in enumerate(message.field)
    ]
    return "\n".join([text, "", "| field | number | type | |", "|---|---:|---|---|", *rows])


def _enum(proto: Proto, index: int, enum: EnumDescriptorProto) -> str:
    rows = [
        f"| `{value.name}` | {value.number} | {_cell(proto.comment(_ENUM, index, _VALUE, at))} |"
        for at, value in enumerate(enum.value)
    ]
    head = [f"## {enum.name}", "", proto.comment(_ENUM, index), "", "| value | number | |", "|---|---:|---|"]
    return "\n".join([*head, *rows])


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    entry = next((one for one in message.nested_type if field.type_name.endswith(f".{message.name}.{one.name}")), None)
    if entry is not None and entry.options.map_entry:
        key, value = entry.field
        return f"map of {_single(key)} to {_single(value)}"
    shown = _single(field)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {shown}"
    if field.proto3_optional:
        return f"optional {shown}"
    if field.HasField("oneof_index"):
        return f"{shown}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return shown


def _single(field: FieldDescriptorProto) -> str:
    return _link(field.type_name) if field.type_name else _SCALARS[field.type]


def _link(name: str) -> str:
    short = name.rpartition(".")[2]
    return short if name.startswith(".google.") else f"[{short}](#{short.lower()})"


def _joined(comment: str) -> str:
    return " ".join(line.strip() for line in comment.splitlines()).strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(compiled()))
