"""Program that fuzzes one target with atheris: `fuzzer.py TARGET`, followed by flags of libFuzzer."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["daemon", "google.protobuf", "tomllib", "json"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
